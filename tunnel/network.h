// SPDX-License-Identifier: GPL-2.0-or-later
// The host's network, by rtnetlink and nf_tables. Needs CAP_NET_ADMIN; blocks for as long as the
// kernel takes; one thread at a time. Everything throws Error(io) with what was to be done.
#pragma once

#include "tunnel/core/address.h"

#include <memory>
#include <string>

struct nl_sock;
struct nft_ctx;

namespace drover::tunnel {

class Network {
public:
    Network();
    ~Network();
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;

    // Throws Error(usage) if there is no such interface.
    static unsigned index_of(const std::string& interface);

    // The device becomes a port of the bridge, up, without changing the bridge's MAC or MTU. It
    // gets all multicast, and the bridge learns nothing from what comes out of it.
    void join_bridge(const std::string& device, const std::string& bridge);
    // The device is up, with the MTU of `like` and no addresses.
    void bring_up(const std::string& device, const std::string& like);
    // Where a bridge sends frames to the MAC; port "": it does not know.
    struct Place {
        std::string port;
        uint16_t state = 0; // NUD_PERMANENT, NUD_NOARP (static), or it was learnt
    };
    Place place_of(const std::string& bridge, const Mac& mac);
    // Again as it was, unless the port is gone.
    void put_back(const Place& place, const Mac& mac);
    // Frames to the MAC go to that port of its bridge, whatever is seen from where.
    void pin_mac(const std::string& device, const Mac& mac);
    void unpin_mac(const std::string& device, const Mac& mac); // no error if it is not

    // A transaction in nft's language.
    void run_rules(const std::string& text);

private:
    struct FreeSocket {
        void operator()(nl_sock* socket) const;
    };
    struct FreeRules {
        void operator()(nft_ctx* rules) const;
    };
    void set_up_link(const std::string& device, unsigned master, unsigned mtu);
    void set_port(const std::string& device);

    std::unique_ptr<nl_sock, FreeSocket> socket_;
    std::unique_ptr<nft_ctx, FreeRules> rules_;
};

} // namespace drover::tunnel
