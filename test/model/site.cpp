// SPDX-License-Identifier: GPL-2.0-or-later
#include "test/model/site.h"

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <thread>

#include <fmt/format.h>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

namespace drover::model {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;

constexpr auto patience = 30s;

void pause() {
    std::this_thread::sleep_for(2ms);
}

// The state letter of every thread.
bool all_stopped(pid_t pid) {
    for (const auto& task :
         std::filesystem::directory_iterator(fmt::format("/proc/{}/task", pid))) {
        std::ifstream stat(task.path() / "stat");
        std::string text;
        std::getline(stat, text);
        const size_t name_end = text.rfind(')');
        if (name_end == std::string::npos || text[name_end + 2] != 'T') {
            return false;
        }
    }
    return true;
}

UniqueFd connect_to(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
        return UniqueFd();
    }
    return fd;
}

} // namespace

Site::Site(std::string directory, std::string name, std::vector<std::string> parameters)
    : directory_(std::move(directory)), name_(std::move(name)),
      image_(directory_ + "/" + name_ + ".img"), socket_(directory_ + "/" + name_ + ".sock"),
      control_(directory_ + "/" + name_ + ".ctl"), parameters_(std::move(parameters)) {
    start();
}

Site::~Site() {
    kill();
}

void Site::start() {
    const char* const plugin = std::getenv("DROVER_PLUGIN");
    if (plugin == nullptr) {
        throw std::runtime_error("DROVER_PLUGIN is not set: the path of nbdkit-drover-plugin.so");
    }
    ::unlink(socket_.c_str());
    ::unlink(control_.c_str());
    std::vector<std::string> words{
        "nbdkit", "-f", "-t", "32", "-U", socket_, plugin, image_, "control=" + control_};
    words.insert(words.end(), parameters_.begin(), parameters_.end());
    std::vector<char*> arguments;
    for (std::string& word : words) {
        arguments.push_back(word.data());
    }
    arguments.push_back(nullptr);
    const std::string log = directory_ + "/" + name_ + ".log";
    const UniqueFd log_fd(::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    pid_ = ::fork();
    if (pid_ == 0) {
        ::dup2(log_fd.get(), STDERR_FILENO);
        ::execvp("nbdkit", arguments.data());
        ::_exit(127);
    }
    const auto end = std::chrono::steady_clock::now() + patience;
    while (!connect_to(control_)) {
        int status = 0;
        if (::waitpid(pid_, &status, WNOHANG) == pid_) {
            pid_ = -1;
            throw std::runtime_error(fmt::format("nbdkit ended: see {}", log));
        }
        if (std::chrono::steady_clock::now() > end) {
            throw std::runtime_error("nbdkit does not answer");
        }
        pause();
    }
}

void Site::kill() {
    if (pid_ > 0) {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = -1;
    }
}

void Site::stop() {
    ::kill(pid_, SIGSTOP);
    while (!all_stopped(pid_)) {
        pause();
    }
}

void Site::go_on() {
    ::kill(pid_, SIGCONT);
}

json Site::call(const std::string& method, const json& params) const {
    const UniqueFd fd = connect_to(control_);
    if (!fd) {
        throw std::runtime_error(method + ": the control socket does not answer");
    }
    const timeval limit{.tv_sec = 90, .tv_usec = 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    const std::string line =
        json{{"jsonrpc", "2.0"}, {"id", 1}, {"method", method}, {"params", params}}.dump() + "\n";
    if (::send(fd.get(), line.data(), line.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(line.size())) {
        throw std::runtime_error(method + ": the control socket was closed");
    }
    std::string answer;
    while (answer.empty() || answer.back() != '\n') {
        char buffer[16384];
        const ssize_t size = ::recv(fd.get(), buffer, sizeof buffer, 0);
        if (size <= 0) {
            throw std::runtime_error(method + ": no answer");
        }
        answer.append(buffer, static_cast<size_t>(size));
    }
    const json response = json::parse(answer);
    if (response.contains("error")) {
        throw std::runtime_error(method + ": " + response["error"]["message"].get<std::string>());
    }
    return response["result"];
}

} // namespace drover::model
