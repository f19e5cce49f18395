// SPDX-License-Identifier: GPL-2.0-or-later
// The agent's process: requests one after the other, so that `run` can be sent behind `promote`
// without waiting for it. Only `refuse` and
// `take_over`, and the end of the input, interrupt what waits.
#include "migrator/agent.h"

#include "common/privilege.h"
#include "migrator/agent_params.h"
#include "migrator/cli.h"
#include "migrator/destination.h"
#include "migrator/host_facts.h"
#include "migrator/paths.h"
#include "migrator/probe.h"
#include "migrator/verify.h"
#include "migrator/vm_file.h"

#include <deque>
#include <filesystem>

#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/signal_set.hpp>

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;

constexpr uint64_t protocol_version = 2;
constexpr std::chrono::seconds life_interval{5};

std::string machine_id() {
    try {
        std::string id = read_file("/etc/machine-id");
        while (!id.empty() && id.back() == '\n') {
            id.pop_back();
        }
        return id;
    } catch (const Error&) {
        return "";
    }
}

// The id of a migration is known to its two sides alone: only who says it is told it.
Json without_other_migrations(Json disks, const std::string& migration) {
    for (Json& disk : disks) {
        if (disk.at("migration") != migration) {
            disk["migration"] = "";
        }
    }
    return disks;
}

// For a recovery at the other side.
Json records(const Json& params) {
    rpc::only_params(params, {"vm", "disks", "migration"});
    const NamedDisks named = named_disks_param(params);
    const std::string migration = rpc::string_param(params, "migration");
    Json disks = Json::array();
    for (const NamedDisks::Disk& disk : named.disks) {
        disks.push_back(standing_json(disk.name, recorded_standing(named.vm, disk.name)));
    }
    return {{"disks", without_other_migrations(std::move(disks), migration)}};
}

UniqueFd taken(int fd) {
    UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!own) {
        throw_errno("descriptor " + std::to_string(fd));
    }
    return own;
}

class Agent {
public:
    Agent(asio::any_io_executor executor, const SiteConfig& site)
        : executor_(executor), changed_(executor), life_(executor),
          destination_(
              executor,
              site,
              "agent",
              [this](const std::string& event, const std::string& detail) {
                  peer_->notify("event", Json{{"event", event}, {"detail", detail}});
              },
              [this](const std::string& text) {
                  peer_->notify("log", Json{{"level", "warning"}, {"text", text}});
              }),
          hashes_(site), probe_(executor, site) {
        RpcPeer::Events events;
        events.on_request = [this](rpc::Request request) { take(std::move(request)); };
        events.on_notification = [this](const rpc::Request& notification) {
            heard();
            if (notification.method == "alive") {
                patience_ = patience_param(notification.params);
            }
        };
        events.on_close = [this](const std::string&) { end_of_input(); };
        peer_ = RpcPeer::create(
            executor, "coordinator", taken(STDIN_FILENO), taken(STDOUT_FILENO), std::move(events));
    }

    // Until it is finished or its input ends, and everything is put away. True: it could be.
    asio::awaitable<bool> run() {
        listen_for_life();
        while (!finished_ && !(ended_ && requests_.empty())) {
            if (requests_.empty()) {
                co_await changed_.wait_until(no_deadline);
                continue;
            }
            const rpc::Request request = std::move(requests_.front());
            requests_.pop_front();
            // With nobody to hear the answer, only what may not be left half done is still done.
            if (!ended_ || request.method == "promote" || request.method == "run") {
                co_await serve(request);
            }
        }
        const milliseconds moment(5000);
        co_await peer_->flush(moment);
        bool clean = true;
        try {
            co_await destination_.abandon();
        } catch (const std::exception& error) {
            fmt::print(stderr, "drover agent: {}\n", error.what());
            clean = false;
        }
        hashes_.close();
        co_return clean;
    }

    void end_of_input() {
        ended_ = true;
        interrupt();
        changed_.notify();
    }

private:
    // A coordinator says that it lives each few seconds. Behind a dead link its end would not be
    // heard of for hours, and what it has begun here would stay so long.
    void listen_for_life() {
        life_.expires_after(life_interval);
        life_.async_wait([this](asio::error_code error) {
            if (error) {
                return;
            }
            if (Clock::now() - last_heard_ > patience_) {
                fmt::print(stderr, "drover agent: nothing was heard of the coordinator\n");
                end_of_input();
                return;
            }
            listen_for_life();
        });
    }

    void heard() {
        last_heard_ = Clock::now();
        destination_.heard();
    }

    void take(rpc::Request request) {
        heard();
        if (request.method == "refuse" || request.method == "take_over") {
            interrupt();
        }
        requests_.push_back(std::move(request));
        changed_.notify();
    }

    // promote and run are short, and must come to their end.
    void interrupt() {
        if (serving_ != "promote" && serving_ != "run") {
            stop_.emit(asio::cancellation_type::terminal);
        }
    }

    // The method runs as a coroutine of its own: it can be cancelled, this one goes on.
    asio::awaitable<void> serve(rpc::Request request) {
        serving_ = request.method;
        bool done = false;
        auto completed = asio::bind_cancellation_slot(
            stop_.slot(), [this, &done, id = request.id](std::exception_ptr failure, Json result) {
                answer(id, failure, std::move(result));
                done = true;
                changed_.notify();
            });
        asio::co_spawn(
            executor_, method(request.method, std::move(request.params)), std::move(completed));
        while (!done) {
            co_await changed_.wait_until(no_deadline);
        }
        serving_.clear();
    }

    void answer(const Json& id, const std::exception_ptr& failure, Json result) {
        try {
            if (failure) {
                std::rethrow_exception(failure);
            }
            peer_->reply(id, std::move(result));
        } catch (const Error& error) {
            peer_->reply(id, error);
        } catch (const std::exception& error) {
            peer_->reply(id, Error(ErrorKind::io, error.what()));
        }
    }

    asio::awaitable<Json> method(std::string name, Json params) {
        if (name == "prepare") {
            return destination_.prepare(std::move(params));
        }
        if (name == "promote") {
            return destination_.promote(std::move(params));
        }
        if (name == "run") {
            return destination_.run(std::move(params));
        }
        if (name == "take_over") {
            return take_over(std::move(params));
        }
        if (name == "supersede") {
            return destination_.supersede(std::move(params));
        }
        if (name == "segment") {
            return destination_.look_at_segment(std::move(params));
        }
        if (name == "incoming") {
            return destination_.incoming(std::move(params));
        }
        if (name == "memory_again") {
            return destination_.memory_again(std::move(params));
        }
        if (name == "tunnel") {
            return destination_.open_tunnels(std::move(params));
        }
        return other_method(std::move(name), std::move(params));
    }

    asio::awaitable<Json> take_over(Json params) {
        const std::string migration = rpc::string_param(params, "migration");
        Json answer = co_await destination_.take_over(std::move(params));
        answer["disks"] = without_other_migrations(std::move(answer["disks"]), migration);
        co_return answer;
    }

    asio::awaitable<Json> other_method(std::string name, Json params) {
        if (name == "hello") {
            rpc::only_params(params, {"version", "program_version"});
            Json hello{{"version", protocol_version},
                       {"program_version", DROVER_VERSION},
                       {"host", host_name()},
                       {"machine_id", machine_id()}};
            co_return hello;
        }
        if (name == "check") {
            co_return destination_.check(params);
        }
        if (name == "survey") {
            co_return destination_.survey(params);
        }
        if (name == "probe") {
            co_return probe_.open(params);
        }
        if (name == "hashes") {
            co_return hashes_.open(params);
        }
        if (name == "records") {
            co_return records(params);
        }
        rpc::only_params(params, {});
        Json result;
        if (name == "loaded") {
            result = co_await destination_.loaded();
        } else if (name == "status") {
            result = co_await destination_.status();
        } else if (name == "forward_key") {
            result = destination_.forward_key();
        } else if (name == "refuse") {
            result = co_await destination_.refuse();
        } else if (name == "finish") {
            result = co_await destination_.finish();
            finished_ = true;
        } else {
            throw Error(ErrorKind::usage, fmt::format("no such method: '{}'", name));
        }
        co_return result;
    }

    asio::any_io_executor executor_;
    Notifier changed_;
    asio::steady_timer life_;
    Destination destination_;
    HashAccess hashes_;
    Probe probe_;
    std::shared_ptr<RpcPeer> peer_;
    std::deque<rpc::Request> requests_;
    asio::cancellation_signal stop_;
    Deadline last_heard_ = Clock::now();
    std::chrono::seconds patience_ = longest_silence;
    std::string serving_;
    bool ended_ = false, finished_ = false;
};

int serve_stdio(const SiteConfig& site) {
    asio::io_context context(1);
    Agent agent(context.get_executor(), site);
    asio::signal_set signals(context, SIGTERM, SIGINT);
    signals.async_wait([&agent](asio::error_code error, int) {
        if (!error) {
            agent.end_of_input();
        }
    });
    bool clean = false;
    std::exception_ptr broken;
    auto done = [&](std::exception_ptr failure, bool result) {
        broken = failure;
        clean = result;
        context.stop();
    };
    asio::co_spawn(context, agent.run(), std::move(done));
    context.run();
    if (broken) {
        std::rethrow_exception(broken);
    }
    return clean ? exit_done : exit_failed;
}

void make_if_possible(const std::string& folder, unsigned mode) {
    try {
        make_directories(folder, mode);
    } catch (const Error&) {
        // Whatever needs it says why.
    }
}

// Of volumes that VMs which come in may be put on.
void add_folders_of_volumes(const SiteConfig& site, std::vector<std::string>& folders) {
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator(paths().vm_files(), none)) {
        if (entry.path().extension() != ".toml") {
            continue;
        }
        try {
            const VmFile vm = load_vm_file(site, entry.path().string(), HostCheck::may_be_missing);
            for (const DiskSpec& disk : vm.disks) {
                if (disk.store.file.empty()) {
                    continue;
                }
                // The file may be a link to one elsewhere.
                const std::filesystem::path file = disk.store.file;
                make_if_possible(file.parent_path(), 0755);
                folders.push_back(file.parent_path());
                folders.push_back(std::filesystem::weakly_canonical(file).parent_path());
            }
        } catch (const std::exception&) {
            // A migration that needs it says why.
        }
    }
}

// Where the agent and what it starts may write: its own, what hypervisors and tools use, and what
// this site names. Its own are made now, as what is not there can't be allowed.
std::vector<std::string> writable_folders(const SiteConfig& site) {
    make_if_possible(site.images, 0755);
    make_if_possible(paths().state, 0700);
    make_if_possible(paths().run, 0755);
    std::vector<std::string> folders{site.images,
                                     paths().state,
                                     paths().run,
                                     "/dev",
                                     "/proc",
                                     "/run",
                                     "/sys",
                                     "/tmp",
                                     "/var/lib",
                                     "/var/log",
                                     "/var/run",
                                     "/var/tmp"};
    folders.insert(folders.end(), site.agent_writes.begin(), site.agent_writes.end());
    add_folders_of_volumes(site, folders);
    return folders;
}

// What another host asks for, and whoever takes over what it speaks with. A user without privileges
// can do none of it anyway.
void confine(const SiteConfig& site) {
    const auto attempt = [](auto&& restrict) {
        try {
            restrict();
        } catch (const Error& error) {
            if (::geteuid() == 0) {
                fmt::print(stderr, "drover agent: warning: not confined: {}\n", error.what());
            }
        }
    };
    attempt([] { forbid_host_calls(); });
    attempt([&] { confine_writes(writable_folders(site)); });
}

} // namespace

int run_agent_stdio(const SiteConfig& site) {
    ::signal(SIGHUP, SIG_IGN);
    ::signal(SIGPIPE, SIG_IGN);
    try {
        confine(site);
        return serve_stdio(site);
    } catch (const std::exception& error) {
        fmt::print(stderr, "drover agent: {}\n", error.what());
        return exit_failed;
    }
}

} // namespace drover
