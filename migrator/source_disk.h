// SPDX-License-Identifier: GPL-2.0-or-later
// A disk of the VM at the source: the coordinator's view of its plugin's control socket.
#pragma once

#include "migrator/config.h"
#include "migrator/restarts.h"
#include "migrator/rpc_peer.h"
#include "migrator/sides.h"

#include <functional>
#include <map>
#include <memory>
#include <string>

namespace drover {

class SourceDisk : public DiskAtSource {
public:
    // `failed` is called at most once, from the event loop: the plugin has gone, or its
    // replication has failed. `changed` is notified with each new status. Both outlive this, as the
    // site does.
    SourceDisk(asio::any_io_executor executor,
               const SiteConfig& site,
               std::string vm,
               DiskSpec disk,
               Notifier& changed,
               std::function<void(const Error&)> failed);
    ~SourceDisk() override;
    SourceDisk(const SourceDisk&) = delete;
    SourceDisk& operator=(const SourceDisk&) = delete;

    // Connects, reads the status. Throws Error(state) that says what to do when the disk is not
    // served, or not ours to move.
    asio::awaitable<void> open();
    // Each throws what the plugin says, with the disk's name before it.
    asio::awaitable<rpc::Json> call(std::string method, rpc::Json params, milliseconds patience);
    // On a connection of its own, beside a call that waits. A disk that is not served any more is
    // served again first.
    asio::awaitable<rpc::Json>
    call_aside(std::string method, rpc::Json params, milliseconds patience);
    // Status comes by itself from now on.
    asio::awaitable<void> watch();
    asio::awaitable<void> refresh();
    // From here neither its end nor a failed replication is news.
    void unwatch();
    // Whether the end of its nbdkit is no failure: then it is told by ended(), and revive() is to
    // be called. Not at first.
    void may_end(bool may) { may_end_ = may; }
    bool ended() const { return ended_; }
    // Serves it again, unless it ends again and again; without a replication. Throws Error.
    asio::awaitable<void> revive();

    const std::string& name() const override { return disk_.name; }
    asio::awaitable<DiskStanding> standing() override;
    asio::awaitable<Quiesced> quiesce(bool hold, std::string token_hash) override;
    asio::awaitable<std::string> token_hash() override;
    asio::awaitable<std::string> fence(std::string quiesce, std::string first_token) override;
    asio::awaitable<void> cancel() override;
    asio::awaitable<void> unfence(std::string refusal_token) override;
    asio::awaitable<void> unfence_by_force() override;
    asio::awaitable<void> supersede(uint64_t generation) override;
    asio::awaitable<void> forward() override;
    asio::awaitable<void> finish() override;

    const rpc::Json& status() const { return status_; }
    // Of status().replication: its phase, "" if there is none.
    std::string phase() const;
    // A number of the last replication seen, also when it has ended since; 0 if there is none.
    uint64_t number(const char* key) const;
    // The same of one that counts up, with those of the processes that have ended.
    uint64_t total(const char* key) const;
    // Dirty, or on its way and not acknowledged.
    uint64_t left_bytes() const { return number("dirty_bytes") + number("lag_bytes"); }
    bool ready() const;
    // It had a link to the destination, and has not now; error() says why.
    bool link_lost() const { return had_link_ && phase() == "connecting"; }
    std::string error() const;

    // What another coordinator has begun, and not lived to end.
    bool has_leftover() const { return !phase().empty(); }

    // What the switchover needs to know of the migration.
    std::string migration;
    std::string refusal_hash; // empty: the destination is a plain NBD server
    rpc::Json forward_target; // null: nobody is to be forwarded

private:
    void keep_status(const rpc::Json& status);
    void take_status(const rpc::Json& status);
    void fail(const Error& error);
    asio::awaitable<std::shared_ptr<RpcPeer>> connect_aside();

    asio::any_io_executor executor_;
    const SiteConfig& site_;
    const std::string vm_;
    const DiskSpec disk_;
    std::string control_;
    Notifier& changed_;
    std::function<void(const Error&)> failed_;
    std::shared_ptr<RpcPeer> commands_, watcher_;
    Restarts restarts_;
    bool may_end_ = false, ended_ = false, had_link_ = false;
    std::string why_; // it has
    std::string made_token_hash_;
    rpc::Json status_ = rpc::Json::object(), last_replication_ = rpc::Json::object();
    std::map<std::string, uint64_t> counted_before_;
};

} // namespace drover
