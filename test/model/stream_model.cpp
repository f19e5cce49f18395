// SPDX-License-Identifier: GPL-2.0-or-later
// A disk moves between two real nbdkits while several clients write, zero, trim
// and flush it, overlapping; at random moments the destination is looked at.
//
//   stream-model [--seed N] [--rounds N] [--cuts N] [--keep]
//
// Once in sync, the destination has to be a prefix of the acknowledged order whenever it is stopped
// or killed, and have everything that was answered before a status without lag. At the handover it
// has to be equal. DROVER_PLUGIN names the plugin.
#include "nbd-proxy/nbd_handle.h"
#include "test/model/requests.h"
#include "test/model/site.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <random>
#include <string_view>
#include <thread>

#include <fmt/format.h>

#include <fcntl.h>
#include <unistd.h>

using namespace drover;
using namespace drover::model;
using namespace std::chrono_literals;
using nlohmann::json;

namespace {

using Random = std::mt19937_64;

uint64_t below(Random& random, uint64_t n) {
    return random() % n;
}

struct Plan {
    uint64_t disk_size = 0;
    unsigned clients = 0;
    uint64_t hot = 0; // bytes at the start that half of the requests go to
    std::chrono::microseconds idle{0};
    uint64_t block_size = 0, log_memory = 0, connections = 0, max_bandwidth = 0;
    const char* compress = "none";
};

Plan make_plan(Random& random) {
    Plan plan;
    plan.disk_size = (4 + below(random, 12)) * MiB + below(random, 2) * below(random, MiB);
    plan.clients = static_cast<unsigned>(2 + below(random, 3));
    plan.hot = 64 * KiB << below(random, 5);
    // Slow enough to be in sync most of the time on a small machine, but not always.
    plan.idle = std::chrono::microseconds(300 + below(random, 5) * 500);
    plan.block_size = 4 * KiB << below(random, 6);
    plan.log_memory = below(random, 5) == 0 ? 256 * KiB : 64 * MiB;
    plan.connections = 1 + below(random, 4);
    plan.max_bandwidth = below(random, 3) == 0 ? 20 * MiB : 0;
    plan.compress = std::array{"none", "auto", "zstd"}[below(random, 3)];
    return plan;
}

// A client: one connection, one request after the other, until told to stop or the disk goes.
class Client {
public:
    Client(const Plan& plan, Requests& requests, const std::string& socket, uint64_t seed)
        : plan_(plan), requests_(requests), random_(seed), handle_(nbd_create()) {
        if (nbd_connect_unix(handle_.get(), socket.c_str()) < 0) {
            throw std::runtime_error(nbd_get_error());
        }
        nbd_set_strict_mode(handle_.get(), 0);
        thread_ = std::thread([this] { run(); });
    }
    ~Client() { join(); }
    void stop() { stop_ = true; }
    void join() {
        stop();
        if (thread_.joinable()) {
            thread_.join();
        }
    }
    // A request failed that should not have; "": none.
    std::string error() const { return failed_ ? error_ : ""; }

private:
    void run() {
        while (!stop_) {
            if (below(random_, 20) == 0) {
                check(nbd_flush(handle_.get(), 0), 0);
            } else {
                change();
            }
            if (plan_.idle.count() > 0) {
                std::this_thread::sleep_for(plan_.idle * below(random_, 4));
            }
        }
    }

    void change() {
        const uint64_t sectors = (plan_.disk_size + sector - 1) / sector;
        const bool hot = below(random_, 2) == 0;
        const uint64_t first =
            below(random_, hot ? std::min(plan_.hot / sector, sectors) : sectors);
        const uint64_t count = 1 + below(random_, below(random_, 8) == 0 ? 600 : 40);
        Extent where{first * sector, std::min(count, sectors - first) * sector};
        where.length = std::min(where.length, plan_.disk_size - where.offset);
        const uint64_t sort = below(random_, 10);
        const Kind kind = sort < 7 ? Kind::write : sort < 9 ? Kind::zero : Kind::trim;
        const uint32_t fua = below(random_, 10) == 0 ? LIBNBD_CMD_FLAG_FUA : 0;
        nbd_handle* const h = handle_.get();
        const uint64_t number = requests_.start(kind, where);
        if (kind == Kind::write) {
            data_.resize(where.length);
            fill(data_, where.offset, number);
            check(nbd_pwrite(h, data_.data(), data_.size(), where.offset, fua), number);
        } else if (kind == Kind::zero) {
            const uint32_t no_hole = below(random_, 2) == 0 ? LIBNBD_CMD_FLAG_NO_HOLE : 0;
            check(nbd_zero(h, where.length, where.offset, fua | no_hole), number);
        } else {
            check(nbd_trim(h, where.length, where.offset, fua), number);
        }
    }

    void check(int result, uint64_t number) {
        if (result == 0) {
            if (number != 0) {
                requests_.answered(number);
            }
            return;
        }
        if (!stop_) {
            error_ = nbd_get_error();
            failed_ = true;
        }
        stop_ = true;
    }

    const Plan& plan_;
    Requests& requests_;
    Random random_;
    NbdHandle handle_;
    std::vector<std::byte> data_;
    std::string error_;
    std::atomic<bool> stop_{false}, failed_{false};
    std::thread thread_;
};

std::vector<std::byte> read_image(const std::string& path) {
    std::vector<std::byte> bytes(std::filesystem::file_size(path));
    std::ifstream file(path, std::ios::binary);
    file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!file) {
        throw std::runtime_error("cannot read " + path);
    }
    return bytes;
}

void make_image(const std::string& path, uint64_t size, Random& random) {
    std::ofstream file(path, std::ios::binary);
    for (uint64_t at = 0; at < size; at += 64 * KiB) {
        if (below(random, 2) == 0) {
            std::vector<std::byte> data(std::min<uint64_t>(64 * KiB, size - at));
            fill(data, at, 1);
            file.seekp(static_cast<std::streamoff>(at));
            file.write(reinterpret_cast<const char*>(data.data()),
                       static_cast<std::streamsize>(data.size()));
        }
    }
    file.close();
    std::filesystem::resize_file(path, size);
}

std::string random_hex(Random& random, size_t bytes) {
    std::string text;
    for (size_t i = 0; i < bytes; ++i) {
        text += fmt::format("{:02x}", below(random, 256));
    }
    return text;
}

class Round {
public:
    Round(const std::string& directory, uint64_t seed)
        : random_(seed), plan_(make_plan(random_)), requests_(plan_.disk_size),
          directory_(directory) {
        const std::string image = directory_ + "/src.img";
        make_image(image, plan_.disk_size, random_);
        std::vector<std::string> destination{"role=destination"};
        if (below(random_, 2) == 0) {
            // Thick, with something old in it.
            std::ofstream old(directory_ + "/dst.img", std::ios::binary);
            const std::string junk(plan_.disk_size, 'x');
            old.write(junk.data(), static_cast<std::streamsize>(junk.size()));
        } else {
            destination.push_back(fmt::format("size={}", plan_.disk_size));
        }
        const std::string block_size = fmt::format("block-size={}", plan_.block_size);
        destination.push_back(block_size);
        source_.emplace(
            directory_,
            "src",
            std::vector<std::string>{block_size, fmt::format("log-memory={}", plan_.log_memory)});
        destination_.emplace(directory_, "dst", destination);
    }
    // The clients' requests may be held for good: they see the end of the process.
    ~Round() {
        for (const auto& client : clients_) {
            client->stop();
        }
        source_->kill();
    }
    Round(const Round&) = delete;
    Round& operator=(const Round&) = delete;

    void run(unsigned cuts) {
        const std::string migration = random_hex(random_, 16);
        const std::string uuid = source_->call("status")["uuid"];
        destination_->call("prepare",
                           {{"migration", migration},
                            {"generation", 2},
                            {"uuid", uuid},
                            {"block_size", plan_.block_size}});
        for (unsigned i = 0; i < plan_.clients; ++i) {
            clients_.push_back(
                std::make_unique<Client>(plan_, requests_, source_->socket(), random_()));
        }
        source_->call("replicate",
                      {{"migration", migration},
                       {"generation", 2},
                       {"to", {{"socket", destination_->socket()}}},
                       {"connections", plan_.connections},
                       {"compress", plan_.compress},
                       {"max_bandwidth", plan_.max_bandwidth}});
        for (unsigned i = 0; i < cuts; ++i) {
            std::this_thread::sleep_for(std::chrono::microseconds(below(random_, 150'000)));
            cut();
        }
        if (below(random_, 4) == 0) {
            cancel();
        } else {
            hand_over(migration);
        }
    }

    size_t requests() const { return requests_.count(); }
    unsigned looks() const { return looks_; }

private:
    json replication() const {
        const json status = source_->call("status")["replication"];
        if (status.is_null() || status["phase"] == "failed") {
            throw std::runtime_error("the replication failed: " + status.dump());
        }
        for (const auto& client : clients_) {
            if (!client->error().empty()) {
                throw std::runtime_error("a client's request failed: " + client->error());
            }
        }
        return status;
    }

    void look(uint64_t at_least) {
        ++looks_;
        const auto image = read_image(destination_->image());
        const std::string wrong = requests_.explain(image, at_least);
        if (!wrong.empty()) {
            throw std::runtime_error("the destination is not a prefix: " + wrong);
        }
    }

    // What the destination knows of itself, on its disk.
    bool consistent() const {
        std::ifstream file(directory_ + "/dst.img.drover/record");
        std::string head;
        std::getline(file, head);
        return json::parse(file)["consistent"];
    }

    // Stops or kills the destination at some moment; looks at it if it counts itself as consistent.
    void cut() {
        const bool kills = below(random_, 4) == 0;
        const uint64_t before = now_ns();
        const json status = replication();
        std::this_thread::sleep_for(std::chrono::microseconds(below(random_, 3000)));
        if (kills) {
            destination_->kill();
        } else {
            destination_->stop();
        }
        if (consistent()) {
            const bool all_there = status["phase"] == "in_sync" && status["lag_bytes"] == 0;
            look(all_there ? before : 0);
        }
        if (kills) {
            destination_->start();
            if (consistent()) {
                throw std::runtime_error("a replica counts as consistent after it was killed");
            }
            wait_for_sync();
        } else {
            destination_->go_on();
        }
    }

    void wait_for_sync() {
        // With everybody writing at full speed it may never be: then the next cut finds nothing to
        // look at.
        const auto end = std::chrono::steady_clock::now() + 5s;
        while (replication()["phase"] != "in_sync" && std::chrono::steady_clock::now() < end) {
            std::this_thread::sleep_for(5ms);
        }
    }

    void cancel() {
        source_->call("cancel");
        // What is on its way is given up there as well.
        std::this_thread::sleep_for(100ms);
        destination_->stop();
        if (consistent()) {
            look(0);
        }
        end_clients(true);
        check_source();
    }

    void hand_over(const std::string& migration) {
        wait_for_sync();
        const json quiesced = source_->call("quiesce", {{"hold", true}});
        const std::string refusal_hash(64, 'a');
        const json fenced = source_->call(
            "fence", {{"quiesce", quiesced["quiesce"]}, {"refusal_hash", refusal_hash}});
        // Set aside a moment after the answer.
        const std::string aside = source_->image() + ".fenced-2";
        while (!std::filesystem::exists(aside)) {
            std::this_thread::sleep_for(1ms);
        }
        const auto here = read_image(aside), there = read_image(destination_->image());
        if (here != there) {
            const auto [at, other] = std::mismatch(here.begin(), here.end(), there.begin());
            throw std::runtime_error(
                fmt::format("after the handover the disks differ at {}", at - here.begin()));
        }
        const std::string wrong = requests_.explain(there, 0);
        if (!wrong.empty()) {
            throw std::runtime_error("at the handover: " + wrong);
        }
        destination_->call("promote", {{"migration", migration}, {"token", fenced["token"]}});
        const json verified =
            source_->call("verify", {{"to", {{"socket", destination_->socket()}}}});
        if (verified["different"] != 0) {
            throw std::runtime_error("verify: " + verified.dump());
        }
        // The clients' requests are held here for good: they see the end of the process.
        for (const auto& client : clients_) {
            client->stop();
        }
        source_->kill();
        end_clients(false);
        ++looks_;
    }

    // What every client was answered is on the source's disk.
    void check_source() {
        const std::string wrong = requests_.explain(read_image(source_->image()), now_ns());
        if (!wrong.empty()) {
            throw std::runtime_error("the source: " + wrong);
        }
        ++looks_;
    }

    void end_clients(bool must_be_good) {
        for (const auto& client : clients_) {
            client->join();
            if (must_be_good && !client->error().empty()) {
                throw std::runtime_error("a client's request failed: " + client->error());
            }
        }
    }

    Random random_;
    const Plan plan_;
    Requests requests_;
    const std::string directory_;
    std::optional<Site> source_, destination_;
    std::vector<std::unique_ptr<Client>> clients_;
    unsigned looks_ = 0;
};

} // namespace

int main(int argc, char** argv) {
    uint64_t seed = 1, rounds = 5;
    unsigned cuts = 12;
    bool keep = false;
    for (int i = 1; i < argc; ++i) {
        const std::string_view word = argv[i];
        const bool more = i + 1 < argc;
        if (word == "--seed" && more) {
            seed = std::strtoull(argv[++i], nullptr, 0);
        } else if (word == "--rounds" && more) {
            rounds = std::strtoull(argv[++i], nullptr, 0);
        } else if (word == "--cuts" && more) {
            cuts = static_cast<unsigned>(std::strtoul(argv[++i], nullptr, 0));
        } else if (word == "--keep") {
            keep = true;
        } else {
            std::cerr << "usage: stream-model [--seed N] [--rounds N] [--cuts N] [--keep]\n";
            return 2;
        }
    }
    std::string directory = "/tmp/drover-model.XXXXXX";
    if (::mkdtemp(directory.data()) == nullptr) {
        std::cerr << "mkdtemp: " << std::strerror(errno) << "\n";
        return 1;
    }
    int status = 0;
    for (uint64_t round = seed; round < seed + rounds && status == 0; ++round) {
        const std::string place = fmt::format("{}/{}", directory, round);
        std::filesystem::create_directory(place);
        try {
            Round one(place, round);
            one.run(cuts);
            fmt::print(
                "seed {}: {} requests, looked at {} times\n", round, one.requests(), one.looks());
        } catch (const std::exception& error) {
            fmt::print("seed {}: {}\n", round, error.what());
            status = 1;
        }
        std::fflush(stdout);
        if (!keep && status == 0) {
            std::filesystem::remove_all(place);
        }
    }
    if (keep || status != 0) {
        fmt::print("left: {}\n", directory);
    } else {
        std::filesystem::remove_all(directory);
    }
    return status;
}
