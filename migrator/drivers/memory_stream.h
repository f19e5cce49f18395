// SPDX-License-Identifier: GPL-2.0-or-later
// A VM's memory on its way, for hypervisors that write it to a descriptor and know nothing of
// TLS: one TCP connection with TLS-PSK. It blocks, on a thread that its owner makes; what is said
// otherwise may be called from any thread. Errors are Error(peer).
#pragma once

#include "common/unique_fd.h"
#include "migrator/driver.h"

#include <atomic>
#include <memory>

namespace drover {

class MemoryStream {
public:
    MemoryStream();
    ~MemoryStream();
    MemoryStream(const MemoryStream&) = delete;
    MemoryStream& operator=(const MemoryStream&) = delete;

    // Dials link.host.
    void connect(const MemoryLink& link);
    // Takes the first connection that knows the key.
    void accept(UniqueFd listener, const MemoryLink& link);

    // What `writer` writes to its descriptor goes across. The other end is told that this is all
    // only when it has returned; where it throws, the connection just breaks. The link's own error
    // is thrown where that was first.
    void send(const std::function<void(int fd)>& writer);
    // The other side of it. `reader` need not read to the end, which must come all the same.
    void receive(const std::function<void(int fd)>& reader);

    // Any thread: whatever waits here fails at once, and for good.
    void interrupt();
    // Any thread. Bytes a second, 0: unlimited.
    void limit(uint64_t rate) { rate_ = rate; }
    uint64_t bytes() const { return bytes_; }

private:
    struct Session;
    void run(UniqueFd& pump_end,
             const std::function<void()>& pump,
             UniqueFd& work_end,
             const std::function<void()>& work);
    void send_from(int fd);
    void receive_into(int fd);
    void shake_hands(UniqueFd socket, const MemoryLink& link, bool client);
    void hold(UniqueFd socket);
    void pace(uint64_t just_sent);

    std::unique_ptr<Session> session_;
    std::atomic<int> socket_{-1}; // to shut down; owned by session_ or by what waits for one
    std::atomic<bool> interrupted_{false};
    std::atomic<uint64_t> bytes_{0}, rate_{0};
    Deadline window_start_;
    uint64_t window_bytes_ = 0;
};

} // namespace drover
