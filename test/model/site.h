// SPDX-License-Identifier: GPL-2.0-or-later
// nbdkit with the plugin as a process of the test's own, and its control socket.
#pragma once

#include "common/unique_fd.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <sys/types.h>

namespace drover::model {

class Site {
public:
    // Serves directory/NAME.img on NAME.sock and NAME.ctl; messages go to NAME.log. Waits until it
    // answers. Throws std::runtime_error.
    Site(std::string directory, std::string name, std::vector<std::string> parameters);
    ~Site();
    Site(const Site&) = delete;
    Site& operator=(const Site&) = delete;

    void start();
    // SIGKILL, and waits.
    void kill();
    // SIGSTOP: returns when no thread of it runs any more.
    void stop();
    void go_on();

    // The method's result. Throws std::runtime_error with the error's message.
    nlohmann::json call(const std::string& method,
                        const nlohmann::json& params = nlohmann::json::object()) const;

    const std::string& image() const { return image_; }
    const std::string& socket() const { return socket_; }

private:
    const std::string directory_, name_, image_, socket_, control_;
    const std::vector<std::string> parameters_;
    pid_t pid_ = -1;
};

} // namespace drover::model
