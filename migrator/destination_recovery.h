// SPDX-License-Identifier: GPL-2.0-or-later
// `drover recover` at the destination. Nothing leads from here to the source by itself, so without
// its word only what is safe is done: what was promoted and served ever since belongs here; images
// that are no whole state of the disks are refused for good and removed, and the source can take
// the VM back. Whole ones stay until the source is known to be there, as they may be all that is
// left of the VM. Whether the source has been forced meanwhile only the source can say.
#pragma once

#include "migrator/cli.h"
#include "migrator/destination.h"
#include "migrator/peer_agent.h"

#include <memory>
#include <string>

namespace drover {

class DestinationRecovery {
public:
    struct Result {
        int status = exit_failed;
        std::string text;
    };

    // The site outlives it. peer: where the source is, if the operator says it.
    DestinationRecovery(asio::any_io_executor executor,
                        const SiteConfig& site,
                        std::string vm,
                        PeerOptions peer,
                        bool force);
    ~DestinationRecovery();

    // Throws what keeps it from its beginning.
    asio::awaitable<Result> run();

    // A migration to here has not come to its end, as far as the journal or the first disk's record
    // say.
    static bool is_needed(const std::string& vm, const std::string& first_disk);

private:
    using Json = rpc::Json;

    void refuse_if_under_way() const;
    asio::awaitable<void> take_over();
    asio::awaitable<Result> refuse();
    asio::awaitable<Result> settle_whole(const DiskStanding& decisive);
    asio::awaitable<Result> take_by_force();
    asio::awaitable<Result> settle_promoted(const DiskStanding& decisive);
    asio::awaitable<Result> complete();
    asio::awaitable<std::optional<DiskStanding>> ask_source();
    std::string how_it_stands() const;

    asio::any_io_executor executor_;
    const SiteConfig& site_;
    const std::string vm_;
    const PeerOptions peer_;
    const bool force_;
    JournalContent journal_;
    Destination destination_;
    std::vector<DiskStanding> standings_;
};

} // namespace drover
