// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/drivers/none.h"

namespace drover {

asio::awaitable<void> NoneOutgoing::describe(HypervisorLost) {
    co_return;
}
asio::awaitable<Inspection> NoneOutgoing::inspect() {
    co_return Inspection();
}
asio::awaitable<bool> NoneOutgoing::reattach(nlohmann::json) {
    co_return true;
}
asio::awaitable<void> NoneOutgoing::start_outgoing(MemoryLink, MemoryTuning) {
    co_return;
}
asio::awaitable<void> NoneOutgoing::tune(MemoryTuning) {
    co_return;
}
asio::awaitable<MemoryProgress> NoneOutgoing::progress() {
    co_return MemoryProgress();
}
asio::awaitable<void> NoneOutgoing::wait_paused(Deadline) {
    co_return;
}
asio::awaitable<void> NoneOutgoing::finish_memory(milliseconds) {
    co_return;
}
asio::awaitable<void> NoneOutgoing::cancel(milliseconds) {
    co_return;
}
asio::awaitable<void> NoneOutgoing::destroy_source(milliseconds) {
    co_return;
}

asio::awaitable<void> NoneIncoming::start_incoming(MemoryLink, HypervisorLost, milliseconds) {
    co_return;
}
asio::awaitable<void> NoneIncoming::wait_loaded(Deadline) {
    co_return;
}
asio::awaitable<bool> NoneIncoming::adopt(milliseconds) {
    co_return true;
}
asio::awaitable<void> NoneIncoming::run(bool, milliseconds) {
    co_return;
}
asio::awaitable<void> NoneIncoming::destroy(milliseconds) {
    co_return;
}

} // namespace drover
