// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/network.h"

#include "common/error.h"
#include "common/secrets.h"

#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <net/if.h>
#include <netlink/msg.h>
#include <netlink/route/link.h>
#include <netlink/route/link/inet6.h>
#include <netlink/route/neighbour.h>
#include <nftables/libnftables.h>

namespace drover::tunnel {
namespace {

struct Free {
    void operator()(rtnl_link* link) const { rtnl_link_put(link); }
    void operator()(rtnl_neigh* neighbour) const { rtnl_neigh_put(neighbour); }
    void operator()(nl_addr* address) const { nl_addr_put(address); }
    void operator()(nl_msg* message) const { nlmsg_free(message); }
    void operator()(nl_cache* cache) const { nl_cache_free(cache); }
};
template <class T>
using Owned = std::unique_ptr<T, Free>;

template <class T>
Owned<T> owned(T* object) {
    if (object == nullptr) {
        throw std::bad_alloc();
    }
    return Owned<T>(object);
}

void check(int result, const std::string& what) {
    if (result < 0) {
        throw Error(ErrorKind::io, fmt::format("{}: {}", what, nl_geterror(result)));
    }
}

Owned<nl_addr> link_address(const std::array<uint8_t, 6>& bytes) {
    return owned(nl_addr_build(AF_LLC, bytes.data(), bytes.size()));
}

Owned<rtnl_neigh>
entry_of(const std::string& device, const Mac& mac, int state = NUD_NOARP, int flags = NTF_STICKY) {
    auto entry = owned(rtnl_neigh_alloc());
    rtnl_neigh_set_ifindex(entry.get(), static_cast<int>(Network::index_of(device)));
    rtnl_neigh_set_family(entry.get(), AF_BRIDGE);
    rtnl_neigh_set_lladdr(entry.get(), link_address(mac.bytes).get());
    rtnl_neigh_set_state(entry.get(), state);
    rtnl_neigh_set_flags(entry.get(), static_cast<unsigned>(NTF_MASTER | flags));
    return entry;
}

} // namespace

void Network::FreeSocket::operator()(nl_sock* socket) const {
    nl_socket_free(socket);
}

void Network::FreeRules::operator()(nft_ctx* rules) const {
    nft_ctx_free(rules);
}

Network::Network() : socket_(nl_socket_alloc()), rules_(nft_ctx_new(NFT_CTX_DEFAULT)) {
    if (!socket_ || !rules_) {
        throw std::bad_alloc();
    }
    check(nl_connect(socket_.get(), NETLINK_ROUTE), "rtnetlink");
    nft_ctx_buffer_output(rules_.get());
    nft_ctx_buffer_error(rules_.get());
}

Network::~Network() = default;

unsigned Network::index_of(const std::string& interface) {
    const unsigned index = ::if_nametoindex(interface.c_str());
    if (index == 0) {
        throw Error(ErrorKind::usage, fmt::format("there is no network interface '{}'", interface));
    }
    return index;
}

void Network::set_up_link(const std::string& device, unsigned master, unsigned mtu) {
    auto which = owned(rtnl_link_alloc());
    rtnl_link_set_ifindex(which.get(), static_cast<int>(index_of(device)));
    const auto change = [&](rtnl_link* to) {
        check(rtnl_link_change(socket_.get(), which.get(), to, 0), device);
    };
    // A bridge whose MAC nobody has set takes the lowest one of its ports.
    const std::string random = random_bytes(5);
    std::array<uint8_t, 6> mac{0xfe};
    std::copy(random.begin(), random.end(), mac.begin() + 1);
    auto down = owned(rtnl_link_alloc());
    rtnl_link_set_addr(down.get(), link_address(mac).get());
    rtnl_link_set_mtu(down.get(), mtu);
    change(down.get());
    auto no_addresses = owned(rtnl_link_alloc());
    if (rtnl_link_inet6_set_addr_gen_mode(no_addresses.get(), IN6_ADDR_GEN_MODE_NONE) == 0) {
        rtnl_link_change(socket_.get(), which.get(), no_addresses.get(), 0); // no IPv6: none needed
    }
    auto up = owned(rtnl_link_alloc());
    if (master != 0) {
        rtnl_link_set_master(up.get(), static_cast<int>(master));
    }
    rtnl_link_set_flags(up.get(), IFF_UP);
    change(up.get());
}

void Network::set_port(const std::string& device) {
    auto message = owned(nlmsg_alloc_simple(RTM_SETLINK, 0));
    ifinfomsg header{};
    header.ifi_family = AF_BRIDGE;
    header.ifi_index = static_cast<int>(index_of(device));
    check(nlmsg_append(message.get(), &header, sizeof header, NLMSG_ALIGNTO), device);
    nlattr* const port = nla_nest_start(message.get(), IFLA_PROTINFO | NLA_F_NESTED);
    if (port == nullptr) {
        throw std::bad_alloc();
    }
    constexpr uint8_t always = 2; // as if a multicast router were there
    check(nla_put_u8(message.get(), IFLA_BRPORT_LEARNING, 0), device);
    check(nla_put_u8(message.get(), IFLA_BRPORT_MULTICAST_ROUTER, always), device);
    nla_nest_end(message.get(), port);
    check(nl_send_sync(socket_.get(), message.release()), device + ", as a port of its bridge");
}

void Network::join_bridge(const std::string& device, const std::string& bridge) {
    rtnl_link* found = nullptr;
    check(rtnl_link_get_kernel(socket_.get(), 0, bridge.c_str(), &found), bridge);
    const Owned<rtnl_link> link(found);
    const char* const type = rtnl_link_get_type(found);
    if (type == nullptr || std::string_view(type) != "bridge") {
        throw Error(ErrorKind::usage, fmt::format("'{}' is not a bridge", bridge));
    }
    set_up_link(
        device, static_cast<unsigned>(rtnl_link_get_ifindex(found)), rtnl_link_get_mtu(found));
    set_port(device);
}

void Network::bring_up(const std::string& device, const std::string& like) {
    rtnl_link* found = nullptr;
    check(rtnl_link_get_kernel(socket_.get(), 0, like.c_str(), &found), like);
    const Owned<rtnl_link> link(found);
    set_up_link(device, 0, rtnl_link_get_mtu(found));
}

Network::Place Network::place_of(const std::string& bridge, const Mac& mac) {
    nl_cache* found = nullptr;
    check(nl_cache_alloc_name("route/neigh", &found), bridge);
    const Owned<nl_cache> cache(found);
    nl_cache_set_arg1(found, AF_BRIDGE);
    check(nl_cache_refill(socket_.get(), found), bridge);
    const auto master = static_cast<int>(index_of(bridge));
    const auto wanted = link_address(mac.bytes);
    for (nl_object* object = nl_cache_get_first(found); object != nullptr;
         object = nl_cache_get_next(object)) {
        auto* const entry = reinterpret_cast<rtnl_neigh*>(object);
        nl_addr* const address = rtnl_neigh_get_lladdr(entry);
        char port[IF_NAMESIZE] = "";
        if (address != nullptr && nl_addr_cmp(address, wanted.get()) == 0 &&
            rtnl_neigh_get_master(entry) == master &&
            ::if_indextoname(static_cast<unsigned>(rtnl_neigh_get_ifindex(entry)), port) !=
                nullptr) {
            return {port, static_cast<uint16_t>(rtnl_neigh_get_state(entry))};
        }
    }
    return {};
}

void Network::put_back(const Place& place, const Mac& mac) {
    if (place.port.empty() || ::if_nametoindex(place.port.c_str()) == 0) {
        return;
    }
    const bool fixed = (place.state & (NUD_PERMANENT | NUD_NOARP)) != 0;
    const auto entry = entry_of(place.port, mac, fixed ? place.state : NUD_REACHABLE, 0);
    check(rtnl_neigh_add(socket_.get(), entry.get(), NLM_F_CREATE | NLM_F_REPLACE),
          fmt::format("{} to {}", to_text(mac), place.port));
}

void Network::pin_mac(const std::string& device, const Mac& mac) {
    check(rtnl_neigh_add(socket_.get(), entry_of(device, mac).get(), NLM_F_CREATE | NLM_F_REPLACE),
          fmt::format("{} to {}", to_text(mac), device));
}

void Network::unpin_mac(const std::string& device, const Mac& mac) {
    const int result = rtnl_neigh_delete(socket_.get(), entry_of(device, mac).get(), 0);
    if (result != -NLE_OBJ_NOTFOUND) {
        check(result, fmt::format("{} at {}", to_text(mac), device));
    }
}

void Network::run_rules(const std::string& text) {
    if (nft_run_cmd_from_buffer(rules_.get(), text.c_str()) != 0) {
        throw Error(ErrorKind::io,
                    fmt::format("nf_tables: {}", nft_ctx_get_error_buffer(rules_.get())));
    }
}

} // namespace drover::tunnel
