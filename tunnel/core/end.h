// SPDX-License-Identifier: GPL-2.0-or-later
// One end of the tunnel, without its I/O: it is told of frames, of what the peer says, of commands
// and the time, and tells its surroundings what to do. One thread.
//
//   home:  ready --divert--> diverted --rollback--> returning --the peer has sent back--> ready
//   away:  ready --resume--> resumed --hold--> ready
//          ready, resumed --the peer is returning, and what was kept is sent back--> returned
//          returned --the peer is not returning any more--> ready
//   both:  any --close, or the peer closes--> closing
//
// At home, nothing crosses before `diverted`, and the VM's frames enter the old segment only then.
// Away, frames for the VM are kept until `resumed`, delivered in the order in which home sent them,
// once; or they go back.
#pragma once

#include "tunnel/core/address_filter.h"
#include "tunnel/core/flow_table.h"
#include "tunnel/core/framing.h"
#include "tunnel/core/hold_queue.h"
#include "tunnel/core/keep.h"
#include "tunnel/core/offload.h"
#include "tunnel/core/put_up.h"

namespace drover::tunnel {

// What an end has around it. Must not call back.
class Surroundings {
public:
    virtual ~Surroundings() = default;
    virtual void to_device(Bytes frame, const Offload& offload) = 0;
    virtual void to_peer(Bytes record) = 0;
    virtual size_t room() const = 0; // for a record; 0: there is no link
    virtual bool link_up() const = 0;
    virtual void tell_phase(Phase phase) = 0; // the peer, again and again
    // Home: the VM's frames come to the device from now on, or do not; away: only recorded. Throws
    // Error, with nothing changed.
    virtual void switch_over(bool over) = 0;
};

struct EndOptions {
    Role role = Role::home;
    Nic nic;
    HoldLimits hold;
    FlowLimits flows;
    Keep keep;             // home decides
    bool switched = false; // it was, before a restart
};

struct EndCounters {
    uint64_t to_peer = 0, to_device = 0; // frames
    uint64_t refused_here = 0; // from the device: of no address of the VM, or of another MAC
    uint64_t refused_peer = 0; // from the peer: the same
    uint64_t no_link = 0;      // there was no link for them
    uint64_t not_switched = 0; // home: from the peer, while the VM is here
    uint64_t answered = 0;     // questions for the VM's MAC
    uint64_t clamped = 0;      // connections whose MSS was lowered
};

class End {
public:
    End(EndOptions options, Surroundings& around, uint64_t now_ms);

    void from_device(std::span<uint8_t> frame, const Offload& offload, uint64_t now_ms);
    void from_peer(const Record& record, HoldQueue::Order order, uint64_t now_ms);
    void peer_phase(Phase phase, uint64_t now_ms);
    // In how many ms it wants to be called again.
    uint64_t tick(uint64_t now_ms);
    // After each burst of the above: nothing for the device is waiting to be joined any more.
    void flush();

    // Commands. Each may be given again. Throws Error(state) where this end has no such command or
    // the link is not up.
    void divert(uint64_t now_ms);
    void resume(uint64_t now_ms);
    // Away: the VM is paused, on its way home.
    void hold();
    // certain: it is known that the VM runs here. Else the other end has to say that it does not
    // run there: throws Error(refused) if it does.
    void rollback(bool certain, uint64_t now_ms);
    void close(const std::string& why, uint64_t now_ms);

    // Both ends know of the closing, or the peer does not answer: take down.
    bool finished(uint64_t now_ms) const;
    const std::string& closing_reason() const { return why_; }

    Phase phase() const { return phase_; }
    std::optional<Phase> peer() const { return peer_; } // nullopt: it has not said yet
    const FlowTable& flows() const { return flows_; }
    const HoldQueue& held() const { return held_; }
    const Joiner& joiner() const { return joiner_; }
    const EndCounters& counters() const { return counters_; }

private:
    void from_device_home(std::span<uint8_t> frame,
                          const Offload& offload,
                          const Parsed& parsed,
                          uint64_t now_ms);
    void frame_from_peer(Bytes frame, HoldQueue::Order order, uint64_t now_ms);
    void frame_at_home(Bytes frame, const Parsed& parsed, uint64_t now_ms);
    void carry(std::span<uint8_t> frame,
               const Offload& offload,
               const Parsed& parsed,
               bool from_vm,
               uint64_t now_ms);
    void split_to_peer(Bytes frame);
    void deliver(Bytes frame, const Parsed& parsed);
    void to_device(Bytes frame);
    auto device() {
        return [this](Bytes frame, const Offload& offload) { around_.to_device(frame, offload); };
    }
    void set_phase(Phase phase);
    void send_back();
    uint64_t tick_away(uint64_t now_ms);

    const EndOptions options_;
    Surroundings& around_;
    const AddressFilter filter_;
    FlowTable flows_;
    HoldQueue held_;
    TcpCutter tcp_cutter_;
    TcpJoiner tcp_joiner_;
    Splitter splitter_;
    Joiner joiner_;
    EndCounters counters_;
    Phase phase_ = Phase::ready;
    std::optional<Phase> peer_;
    bool sends_back_ = false;      // away: what is kept, bit by bit
    uint64_t switched_ms_ = 0;     // when phase became `diverted` or `resumed`
    uint64_t return_until_ms_ = 0; // home: what comes back is delivered until then
    uint64_t closing_ms_ = 0;
    bool peer_closes_ = false;
    std::string why_;
};

} // namespace drover::tunnel
