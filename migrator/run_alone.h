// SPDX-License-Identifier: GPL-2.0-or-later
// For commands that wait for a single task.
#pragma once

#include <exception>
#include <optional>
#include <utility>

#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>

namespace drover {

// The task's result, on this thread; what else runs in the context is left when it has ended.
template <typename Result>
Result run_alone(asio::io_context& context, asio::awaitable<Result> task) {
    std::optional<Result> result;
    std::exception_ptr broken;
    auto done = [&](std::exception_ptr failure, Result value) {
        broken = failure;
        result = std::move(value);
        context.stop();
    };
    asio::co_spawn(context, std::move(task), std::move(done));
    context.run();
    if (broken) {
        std::rethrow_exception(broken);
    }
    return std::move(*result);
}

} // namespace drover
