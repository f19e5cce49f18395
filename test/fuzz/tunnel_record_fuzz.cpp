// SPDX-License-Identifier: GPL-2.0-or-later
// Any bytes as records of the tunnel's link, each behind two bytes that are its length, at an away
// end that holds and one that delivers: bounded, and nothing but frames for the VM comes out. The
// first byte 'f': the rest is a frame, which must come out of splitting and joining as it was.
#include "common/error.h"
#include "test/fuzz/check.h"
#include "tunnel/core/end.h"

#include <algorithm>

using namespace drover::tunnel;

namespace {

class Around : public Surroundings {
public:
    explicit Around(const Nic& nic) : filter_(nic) {}
    void to_device(Bytes frame, const Offload& offload) override {
        const auto parsed = parse_frame(frame);
        FUZZ_CHECK(filter_.to_vm(*parsed));
        if (offload.kind != Offload::uncut) {
            FUZZ_CHECK(parsed->ip->end == frame.size() && offload.segment > 0);
            FUZZ_CHECK(offload.headers + size_t{offload.segment} < frame.size());
        }
    }
    void to_peer(Bytes) override {}
    size_t room() const override { return 1400; }
    bool link_up() const override { return true; }
    void tell_phase(Phase) override {}
    void switch_over(bool) override {}

private:
    const AddressFilter filter_;
};

void split_and_join(Bytes frame) {
    for (const size_t room : {64UL, 300UL, 1400UL}) {
        Splitter splitter;
        Joiner joiner;
        std::optional<Frame> joined;
        splitter.split(frame, room, [&](Bytes bytes) {
            FUZZ_CHECK(bytes.size() <= room);
            const auto record = parse_record(bytes);
            FUZZ_CHECK(record.has_value());
            if (const auto* const piece = std::get_if<Piece>(&*record)) {
                joined = joiner.add(*piece, 1);
            } else {
                const Bytes whole = std::get<WholeFrame>(*record).frame;
                joined = Frame(whole.begin(), whole.end());
            }
        });
        const bool possible = frame.size() <= 255 * (room - 8) || frame.size() + 1 <= room;
        FUZZ_CHECK(
            !possible ||
            (joined && std::equal(joined->begin(), joined->end(), frame.begin(), frame.end())));
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size > ethernet_header && data[0] == 'f') {
        split_and_join({data + 1, size - 1});
        return 0;
    }
    EndOptions options;
    options.role = Role::away;
    options.nic = {*parse_mac("02:00:00:00:00:10"), {*parse_prefix("10.1.0.10/24")}, {}};
    options.hold = {20'000, 1000};
    Around around(options.nic);
    End holding(options, around, 0);
    options.switched = true;
    End delivering(options, around, 0);
    Bytes rest(data, size);
    for (uint64_t number = 0; rest.size() > 2; ++number) {
        const size_t length = std::min<size_t>(rest.size() - 2, rest[0] | rest[1] << 8);
        if (const auto record = parse_record(rest.subspan(2, length))) {
            for (End* const end : {&holding, &delivering}) {
                if (const auto* const ping = std::get_if<Ping>(&*record)) {
                    end->peer_phase(ping->phase, number);
                } else {
                    end->from_peer(*record, {1, number}, number);
                }
                if (number % 4 == 3) {
                    end->flush();
                }
                FUZZ_CHECK(end->held().bytes() <= 20'000);
                FUZZ_CHECK(end->joiner().unfinished() <= Joiner::most_frames);
            }
        }
        rest = rest.subspan(2 + length);
    }
    return 0;
}
