// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/segment/probe.h"

namespace drover::tunnel {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

bool vm_answers(const std::string& interface,
                const Nic& nic,
                const Nonce& nonce,
                milliseconds patience) {
    constexpr milliseconds again{250};
    PacketSocket socket(interface, PacketSocket::Hears::address_resolution);
    const std::vector<Frame> questions = probes(nic, nonce);
    const auto deadline = steady_clock::now() + patience;
    while (steady_clock::now() < deadline) {
        for (const Frame& question : questions) {
            socket.send(question);
        }
        const auto next = std::min(deadline, steady_clock::now() + again);
        while (const auto frame = socket.receive(next)) {
            const auto parsed = parse_frame(*frame);
            if (parsed && is_answer(nic, *parsed)) {
                return true;
            }
        }
    }
    return false;
}

bool NonceWatch::heard(const Nonce& nonce, milliseconds patience) {
    const auto deadline = steady_clock::now() + patience;
    while (const auto frame = socket_.receive(deadline)) {
        if (carries(*frame, nonce)) {
            return true;
        }
    }
    return false;
}

} // namespace drover::tunnel
