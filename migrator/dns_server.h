// SPDX-License-Identifier: GPL-2.0-or-later
// A DNS server that has the zones themselves, asked and updated over TCP: what comes through is not
// cut, no address can be forged, and an update is never sent twice. Whatever is at the other end,
// it takes no longer than its deadlines. Each object is of one thread; all block.
#pragma once

#include "migrator/async.h"
#include "migrator/config.h"
#include "migrator/dns_message.h"

namespace drover {

class DnsServer {
public:
    // Reads the key. Throws Error(usage).
    explicit DnsServer(const DnsSpec& spec);

    // All of these throw Error(peer) or Error(timeout) where it can't be asked, Error(refused)
    // where it does not take the key or is not the one to ask. Each text names the server.

    // What a name of this host or network has. Error(refused) also for an alias.
    DnsRecords look_up(const std::string& name, DnsType type);
    // The zone that a name is in; nullopt: it is not authoritative for any.
    std::optional<std::string> zone_of(const std::string& name);
    // False: the records are not what one of the updates comes from, and nothing has changed.
    bool update(const std::string& zone, const std::vector<DnsUpdate>& updates);

    const std::string& text() const { return text_; }

private:
    DnsAnswer call(const DnsRequest& request);
    [[noreturn]] void refuse(const std::string& what, uint16_t code) const;

    const std::string address_;
    const uint16_t port_;
    const std::string text_; // "10.1.0.53", "[2001:db8::53]:5353"
    const DnsKey key_;
    const Deadline deadline_; // of all together
};

} // namespace drover
