// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/end.h"

#include "common/error.h"
#include "tunnel/core/responder.h"
#include "tunnel/core/tcp_rewrite.h"

namespace drover::tunnel {
namespace {

constexpr uint64_t return_ms = 10'000; // for what comes back
constexpr uint64_t farewell_ms = 3000; // for a peer that does not answer
constexpr uint64_t goodbye_ms = 700;   // so that the peer hears of it
// What is delivered at once: less than the queue of a TAP device (1000), and of a virtio ring.
constexpr size_t burst = 128;
// And sent back: 100 Mbit/s of large frames.
constexpr size_t return_burst = 8;
constexpr uint64_t burst_every_ms = 1, idle_tick_ms = 100;

} // namespace

End::End(EndOptions options, Surroundings& around, uint64_t now_ms)
    : options_(std::move(options)), around_(around), filter_(options_.nic), flows_(options_.flows),
      held_(options_.hold), switched_ms_(now_ms) {
    if (options_.switched) {
        phase_ = options_.role == Role::home ? Phase::diverted : Phase::resumed;
    }
}

void End::set_phase(Phase phase) {
    phase_ = phase;
    around_.tell_phase(phase);
}

void End::from_device(std::span<uint8_t> frame, const Offload& offload, uint64_t now_ms) {
    const auto parsed = parse_frame(frame);
    if (!parsed) {
        return;
    }
    if (options_.role == Role::home) {
        from_device_home(frame, offload, *parsed, now_ms);
    } else if (filter_.from_vm(*parsed)) {
        carry(frame, offload, *parsed, true, now_ms);
    } else {
        ++counters_.refused_here;
    }
}

void End::from_device_home(std::span<uint8_t> frame,
                           const Offload& offload,
                           const Parsed& parsed,
                           uint64_t now_ms) {
    if (phase_ != Phase::diverted) {
        return; // broadcasts of the segment: the VM hears them itself
    }
    if (const auto answer = answer_for(options_.nic, parsed)) {
        to_device(*answer);
        ++counters_.answered;
    } else if (filter_.to_vm(parsed)) {
        carry(frame, offload, parsed, false, now_ms);
    } else {
        ++counters_.refused_here;
    }
}

void End::carry(std::span<uint8_t> frame,
                const Offload& offload,
                const Parsed& parsed,
                bool from_vm,
                uint64_t now_ms) {
    flows_.seen(parsed, from_vm, frame.size(), now_ms);
    const size_t room = around_.room();
    if (offload.kind != Offload::uncut && room != 0) {
        const auto packet = [this](Bytes bytes) { split_to_peer(bytes); };
        if (!tcp_cutter_.cut(frame, parsed, offload.segment, room - 1, packet)) {
            ++counters_.refused_here;
        }
        return;
    }
    complete_checksum(frame, offload);
    if (room > ethernet_header + 1 && clamp_mss(frame, parsed, room - ethernet_header - 1)) {
        ++counters_.clamped;
    }
    split_to_peer(frame);
}

void End::split_to_peer(Bytes frame) {
    const size_t room = around_.room();
    if (room == 0) {
        ++counters_.no_link;
        return;
    }
    splitter_.split(frame, room, [this](Bytes record) { around_.to_peer(record); });
    ++counters_.to_peer;
}

void End::deliver(Bytes frame, const Parsed& parsed) {
    tcp_joiner_.add(frame, parsed, device());
    ++counters_.to_device;
}

void End::to_device(Bytes frame) {
    flush();
    around_.to_device(frame, Offload{});
}

void End::flush() {
    tcp_joiner_.flush(device());
}

void End::from_peer(const Record& record, HoldQueue::Order order, uint64_t now_ms) {
    if (const auto* const whole = std::get_if<WholeFrame>(&record)) {
        frame_from_peer(whole->frame, order, now_ms);
    } else if (const auto* const piece = std::get_if<Piece>(&record)) {
        if (const auto frame = joiner_.add(*piece, order.first)) {
            frame_from_peer(*frame, order, now_ms);
        }
    }
}

void End::frame_from_peer(Bytes frame, HoldQueue::Order order, uint64_t now_ms) {
    const auto parsed = parse_frame(frame);
    if (!parsed) {
        ++counters_.refused_peer;
        return;
    }
    if (options_.role == Role::home) {
        frame_at_home(frame, *parsed, now_ms);
        return;
    }
    if (!filter_.to_vm(*parsed)) {
        ++counters_.refused_peer;
        return;
    }
    flows_.seen(*parsed, false, frame.size(), now_ms);
    if (phase_ == Phase::resumed && held_.frames() == 0) {
        deliver(frame, *parsed);
    } else if (phase_ != Phase::closing) {
        held_.push(order, Frame(frame.begin(), frame.end()), now_ms);
    }
}

void End::frame_at_home(Bytes frame, const Parsed& parsed, uint64_t now_ms) {
    if (filter_.from_vm(parsed)) {
        if (phase_ == Phase::diverted) {
            flows_.seen(parsed, true, frame.size(), now_ms);
            deliver(frame, parsed);
        } else {
            ++counters_.not_switched;
        }
    } else if (now_ms < return_until_ms_ && filter_.to_vm(parsed)) {
        deliver(frame, parsed); // it comes back
    } else {
        ++counters_.refused_peer;
    }
}

void End::peer_phase(Phase phase, uint64_t now_ms) {
    peer_ = phase;
    if (phase == Phase::closing) {
        if (phase_ != Phase::closing) {
            close("the other end closes", now_ms);
        }
        peer_closes_ = true;
    } else if (options_.role == Role::home) {
        if (phase_ == Phase::returning && phase == Phase::returned) {
            set_phase(Phase::ready);
        }
    } else if (phase == Phase::returning) {
        try {
            hold(); // where it had resumed: the peer is certain that the VM has left
        } catch (const Error&) {
            return; // the peer says it again
        }
        sends_back_ = phase_ == Phase::ready;
    } else {
        sends_back_ = false;
        if (phase_ == Phase::returned) {
            set_phase(Phase::ready);
        }
    }
}

void End::send_back() {
    for (size_t i = 0; i < return_burst; ++i) {
        const auto frame = held_.pop();
        if (!frame) {
            sends_back_ = false;
            set_phase(Phase::returned);
            return;
        }
        split_to_peer(*frame);
    }
}

void End::divert(uint64_t now_ms) {
    if (options_.role != Role::home) {
        throw Error(ErrorKind::state, "the home end diverts");
    }
    if (phase_ == Phase::diverted) {
        return;
    }
    if (phase_ == Phase::closing || !around_.link_up()) {
        throw Error(ErrorKind::state,
                    phase_ == Phase::closing ? "it is closing" : "the link is not up");
    }
    around_.switch_over(true);
    return_until_ms_ = 0;
    switched_ms_ = now_ms;
    set_phase(Phase::diverted);
    for (const Frame& frame : announcements(options_.nic)) {
        to_device(frame);
    }
}

void End::resume(uint64_t now_ms) {
    if (options_.role != Role::away) {
        throw Error(ErrorKind::state, "the away end resumes");
    }
    if (phase_ == Phase::resumed) {
        return;
    }
    if (phase_ == Phase::closing || phase_ == Phase::returned || sends_back_) {
        throw Error(ErrorKind::state,
                    phase_ == Phase::closing ? "it is closing" : "the VM has gone back");
    }
    around_.switch_over(true);
    switched_ms_ = now_ms;
    set_phase(Phase::resumed);
    tick_away(now_ms);
}

void End::hold() {
    if (options_.role != Role::away) {
        throw Error(ErrorKind::state, "the away end holds");
    }
    if (phase_ != Phase::resumed) {
        return;
    }
    around_.switch_over(false);
    set_phase(Phase::ready);
}

void End::rollback(bool certain, uint64_t now_ms) {
    if (options_.role != Role::home) {
        throw Error(ErrorKind::state, "the home end rolls back");
    }
    if (phase_ != Phase::diverted) {
        return;
    }
    if (!certain && (!peer_ || !around_.link_up())) {
        throw Error(ErrorKind::state,
                    "the link is not up: whether the VM runs at the other end is not known");
    }
    if (!certain && peer_ == Phase::resumed) {
        throw Error(ErrorKind::refused, "the VM runs at the other end");
    }
    around_.switch_over(false);
    return_until_ms_ = now_ms + return_ms;
    set_phase(Phase::returning);
}

void End::close(const std::string& why, uint64_t now_ms) {
    if (phase_ == Phase::closing) {
        return;
    }
    why_ = why;
    closing_ms_ = now_ms;
    set_phase(Phase::closing);
}

bool End::finished(uint64_t now_ms) const {
    if (phase_ != Phase::closing) {
        return false;
    }
    return now_ms >= closing_ms_ + (peer_closes_ || !around_.link_up() ? goodbye_ms : farewell_ms);
}

uint64_t End::tick_away(uint64_t now_ms) {
    if (sends_back_) {
        send_back();
        return burst_every_ms;
    }
    if (phase_ == Phase::resumed && held_.frames() != 0) {
        for (size_t i = 0; i < burst; ++i) {
            const auto frame = held_.pop();
            if (!frame) {
                break;
            }
            deliver(*frame, *parse_frame(*frame));
        }
        return burst_every_ms;
    }
    held_.expire(now_ms);
    return idle_tick_ms;
}

uint64_t End::tick(uint64_t now_ms) {
    flows_.expire(now_ms);
    if (options_.role == Role::away) {
        return tick_away(now_ms);
    }
    if (phase_ == Phase::returning && now_ms >= return_until_ms_) {
        set_phase(Phase::ready); // the peer is gone; so is what it kept
    }
    if (phase_ == Phase::diverted && peer_ == Phase::resumed) {
        const std::string why = reason_to_end(options_.keep, flows_.live(), now_ms - switched_ms_);
        if (!why.empty()) {
            close(why, now_ms);
        }
    }
    return idle_tick_ms;
}

} // namespace drover::tunnel
