// SPDX-License-Identifier: GPL-2.0-or-later
// A disk of a VM that comes in: its image, its nbdkit, its keys.
#pragma once

#include "migrator/restarts.h"
#include "migrator/rpc_peer.h"
#include "migrator/serve.h"
#include "migrator/sides.h"
#include "migrator/vm_file.h"

#include <functional>
#include <memory>
#include <string>

namespace drover {

class DestinationDisk : public DiskAtDestination {
public:
    struct Events {
        // Its nbdkit has ended by itself, and is not there again. At most once.
        std::function<void(const std::string&)> lost;
        // It has, and is started again.
        std::function<void(const std::string&)> restarts;
    };

    // site outlives it.
    DestinationDisk(asio::any_io_executor executor,
                    const SiteConfig& site,
                    std::string vm,
                    VmDescription::Disk disk,
                    Events events);
    ~DestinationDisk() override;
    DestinationDisk(const DestinationDisk&) = delete;
    DestinationDisk& operator=(const DestinationDisk&) = delete;

    // Whether it can come here; touches nothing. Throws Error(refused) or Error(state) that says
    // what is in the way, and what to do about it.
    void check() const;
    // The largest that is known of it here, 0 if nothing is.
    uint64_t generation() const;
    // Starts nbdkit, which makes the image where there is none, and makes it the replica of this
    // migration.
    asio::awaitable<void> prepare(std::string migration, uint64_t generation, std::string key);
    // Of a migration that another agent has prepared, or that came no further here. Nothing is
    // started before it is needed.
    void attach(const std::string& migration);
    bool is_of_this_migration() const;
    // A key that outlives the migration, for a source that forwards its client here.
    void add_forward_key(const std::string& key);

    // `image`: what a new image of it starts from, as the peer names it. check() looks at it.
    void use_base(std::string image) { base_ = std::move(image); }
    // An image of this disk that its record has set aside: it is taken again, and outlives the
    // migration.
    bool has_old_image() const;
    // It was here before the migration: a refusal sets it aside again, rather than remove it.
    void keep_image() { keeps_ = true; }
    bool keeps_image() const { return keeps_; }

    // The hypervisor has its socket: should its nbdkit end from now on, that is a loss.
    void is_used() { used_ = true; }

    const std::string& name() const override { return disk_.name; }
    asio::awaitable<DiskStanding> standing() override;
    asio::awaitable<void> promote(std::string token) override;
    asio::awaitable<void> did_not_run() override;
    asio::awaitable<std::string> refuse() override;
    // And the migration's keys are forgotten.
    asio::awaitable<void> finish() override;

    // Promoted, and served by the same process since: it holds no writes back.
    bool promoted_here() const;
    asio::awaitable<void> promote_by_force();
    // The source was forced, and is the owner.
    asio::awaitable<void> supersede(uint64_t generation);
    // After refuse: nothing of this migration is left but the record of the refusal.
    asio::awaitable<void> remove();
    // Its image is a state that the source's disk has been in.
    bool is_consistent() const;
    // Not refused: nothing runs any more, and the image stays for whoever decides.
    asio::awaitable<void> put_down();
    void remove_key();
    asio::awaitable<rpc::Json> status();

    const std::string& socket() const { return served_.socket; }
    DiskStore store() const;
    // Of `prepare`'s answer (docs/control.md).
    rpc::Json description() const;
    rpc::Json forward_description() const;

private:
    ServeDisk serve_disk() const;
    asio::awaitable<void> start();
    void connect();
    void ended(const std::string& reason);
    void restart();
    asio::awaitable<void> settled();
    void require_this_migration() const;
    asio::awaitable<void> seed() const;
    void set_aside() const;
    bool is_in_images() const; // not a volume of the operator's own
    asio::awaitable<rpc::Json> call(std::string method, rpc::Json params);

    asio::any_io_executor executor_;
    const SiteConfig& site_;
    const std::string vm_;
    const VmDescription::Disk disk_;
    Events events_;
    std::string base_;
    std::string migration_, refusal_hash_, user_, forward_user_, forward_key_;
    ServedDisk served_;
    Restarts restarts_;
    bool restarting_ = false;
    Notifier restarted_;
    std::shared_ptr<void> alive_ = std::make_shared<char>(); // for who restarts it
    bool used_ = false;
    bool running_ = false; // its nbdkit is ours to stop
    bool created_ = false; // the image is ours to remove
    bool keeps_ = false;   // it is not
    bool empty_ = true;    // there was nothing in it
    std::shared_ptr<RpcPeer> control_;
};

// What is recorded on this host, of a disk that may be served or not; of one that nothing is known
// of: a replica at stage idle.
DiskStanding recorded_standing(const std::string& vm, const std::string& disk);
rpc::Json standing_json(const std::string& name, const DiskStanding& standing);

} // namespace drover
