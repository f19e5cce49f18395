// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/report.h"

#include "common/secrets.h"
#include "migrator/paths.h"
#include "migrator/state_files.h"

#include <ctime>

#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;

constexpr milliseconds terminal_interval{200}, json_interval{500}, line_interval{5000};

std::string seconds_text(const Json& ms) {
    return ms.is_null() ? "-" : fmt::format("{:.3f} s", ms.get<double>() / 1000);
}

std::string utc(int64_t seconds) {
    const time_t time = seconds;
    tm parts{};
    ::gmtime_r(&time, &parts);
    char text[32];
    const size_t length = ::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return {text, length};
}

Json memory_json(const MemoryProgress& memory) {
    return {{"total_bytes", memory.total_bytes},
            {"remaining_bytes", memory.remaining_bytes},
            {"sent_bytes", memory.sent_bytes},
            {"passes", memory.passes},
            {"dirty_rate", memory.dirty_rate},
            {"send_rate", memory.send_rate}};
}

std::string progress_text(const ProgressLine& line) {
    const double done = line.total_bytes == 0
                            ? 100.0
                            : 100.0 *
                                  static_cast<double>(line.total_bytes -
                                                      std::min(line.left_bytes, line.total_bytes)) /
                                  static_cast<double>(line.total_bytes);
    std::string text = fmt::format("[{:7.1f} s] {:<9} disks {:5.1f} %, {} left, {}/s",
                                   static_cast<double>(line.elapsed_ms) / 1000,
                                   phase_name(line.phase),
                                   done,
                                   format_size(line.left_bytes),
                                   format_size(line.rate));
    if (line.eta_ms && line.phase == Phase::copy) {
        text += fmt::format(", ready in {:.0f} s", static_cast<double>(*line.eta_ms) / 1000);
    }
    if (line.throttle_limit) {
        text += fmt::format(", writers slowed to {}/s", format_size(*line.throttle_limit));
    }
    if (line.memory) {
        text += fmt::format("; memory {} of {} left, pass {}, {}/s",
                            format_size(line.memory->remaining_bytes),
                            format_size(line.memory->total_bytes),
                            line.memory->passes,
                            format_size(line.memory->send_rate));
    }
    return text;
}

} // namespace

uint64_t MigrationReport::bytes_sent() const {
    uint64_t sum = memory ? memory->sent_bytes : 0;
    for (const DiskFigures& disk : disks) {
        sum += disk.sent_bytes;
    }
    return sum;
}

Json milliseconds_between(std::optional<Deadline> from, std::optional<Deadline> to) {
    if (!from || !to) {
        return nullptr;
    }
    return std::chrono::duration_cast<milliseconds>(*to - *from).count();
}

Json report_json(const MigrationReport& report) {
    const MigrationTimes& t = report.times;
    Json disks = Json::array();
    for (const DiskFigures& disk : report.disks) {
        disks.push_back({{"name", disk.name},
                         {"size", disk.size},
                         {"sent_bytes", disk.sent_bytes},
                         {"captured_bytes", disk.captured_bytes},
                         {"delta_bytes", disk.delta_bytes},
                         {"zero_bytes", disk.zero_bytes},
                         {"lsn", disk.lsn}});
    }
    return {{"vm", report.vm},
            {"from", report.from},
            {"to", report.to},
            {"migration", report.migration},
            {"generation", report.generation},
            {"disk_only", report.disk_only},
            {"verified", report.verified},
            {"began_at", utc(report.began_at)},
            {"result", report.result},
            {"error", report.error.empty() ? Json() : Json(report.error)},
            {"total_ms", milliseconds_between(t.begin, t.end)},
            {"bulk_ms", milliseconds_between(t.streaming, t.ready)},
            {"memory_ms", milliseconds_between(t.memory, t.paused)},
            {"downtime_ms", milliseconds_between(t.paused, t.running)},
            {"postcopy_ms", milliseconds_between(t.running, t.whole)},
            {"downtime",
             {{"memory_ms", milliseconds_between(t.paused, t.memory_sent)},
              {"handover_ms", milliseconds_between(t.memory_sent, t.handed_over)},
              {"fence_ms", milliseconds_between(t.handed_over, t.fenced)},
              {"promote_ms", milliseconds_between(t.fenced, t.promoted)},
              {"start_ms", milliseconds_between(t.promoted, t.running)}}},
            {"bytes_sent", report.bytes_sent()},
            {"memory", report.memory ? memory_json(*report.memory) : Json()},
            {"tunnels", tunnels_json(report.tunnels)},
            {"disks", std::move(disks)}};
}

void keep_report(const std::string& path, Json report) {
    if (const auto before = read_whole_file(path)) {
        check_kept_report(*before, path);
    }
    write_file_atomically(path, kept_report(std::move(report)), 0600);
}

std::string report_text(const MigrationReport& report) {
    const Json json = report_json(report);
    const Json& parts = json["downtime"];
    std::string text = fmt::format("{}: {} from {} to {} in {}\n",
                                   report.vm,
                                   report.disk_only ? "disks moved" : "moved",
                                   report.from,
                                   report.to,
                                   seconds_text(json["total_ms"]));
    text += fmt::format("  {:<10}{}: last memory {}, handover {}, fence {}, promote {}, start {}\n",
                        report.disk_only ? "held" : "downtime",
                        seconds_text(json["downtime_ms"]),
                        seconds_text(parts["memory_ms"]),
                        seconds_text(parts["handover_ms"]),
                        seconds_text(parts["fence_ms"]),
                        seconds_text(parts["promote_ms"]),
                        seconds_text(parts["start_ms"]));
    text += fmt::format("  {:<10}{}\n", "sent", format_size(report.bytes_sent()));
    if (report.memory) {
        text += fmt::format("  {:<10}{} in {} passes\n",
                            "memory",
                            format_size(report.memory->sent_bytes),
                            report.memory->passes);
    }
    if (report.times.whole) {
        text += fmt::format("  {:<10}the rest of the memory came {} after the start\n",
                            "post-copy",
                            seconds_text(json["postcopy_ms"]));
    }
    for (const TunnelEnd& end : report.tunnels) {
        text += fmt::format("  {:<10}{}: {}\n",
                            "tunnel",
                            end.name,
                            end.status.is_object() ? tunnel_text(end.status) : end.error);
    }
    for (const DiskFigures& disk : report.disks) {
        text +=
            fmt::format("  disk {:<5}{} of {}: {} read, {} zeroes or holes, {} written meanwhile; "
                        "handed over at LSN {}\n",
                        disk.name,
                        format_size(disk.sent_bytes),
                        format_size(disk.size),
                        format_size(disk.captured_bytes),
                        format_size(disk.zero_bytes),
                        format_size(disk.delta_bytes),
                        disk.lsn);
    }
    if (report.verified) {
        text += fmt::format("  {:<10}no block is different\n", "verified");
    }
    return text;
}

ProgressPrinter::ProgressPrinter(std::FILE* out, bool json)
    : out_(out), json_(json), terminal_(!json && ::isatty(::fileno(out)) != 0),
      next_(Clock::now()) {}

void ProgressPrinter::print_json(const Json& object) {
    const std::string text = object.dump(-1, ' ', false, Json::error_handler_t::replace);
    fmt::print(out_, "{}\n", text);
    std::fflush(out_);
}

void ProgressPrinter::end_line() {
    if (std::exchange(line_open_, false)) {
        fmt::print(out_, "\n");
        std::fflush(out_);
    }
}

void ProgressPrinter::phase(Phase phase, uint64_t elapsed_ms) {
    next_ = Clock::now(); // the next progress is news
    if (json_) {
        print_json({{"event", "phase"}, {"phase", phase_name(phase)}, {"elapsed_ms", elapsed_ms}});
    } else if (!terminal_) {
        fmt::print(
            out_, "[{:7.1f} s] {}\n", static_cast<double>(elapsed_ms) / 1000, phase_name(phase));
        std::fflush(out_);
    }
}

void ProgressPrinter::progress(const ProgressLine& line) {
    const Deadline now = Clock::now();
    if (now < next_) {
        return;
    }
    next_ = now + (json_ ? json_interval : terminal_ ? terminal_interval : line_interval);
    if (json_) {
        print_json({{"event", "progress"},
                    {"phase", phase_name(line.phase)},
                    {"elapsed_ms", line.elapsed_ms},
                    {"total_bytes", line.total_bytes},
                    {"left_bytes", line.left_bytes},
                    {"sent_bytes", line.sent_bytes},
                    {"rate", line.rate},
                    {"eta_ms", line.eta_ms ? Json(*line.eta_ms) : Json()},
                    {"throttle_limit", line.throttle_limit ? Json(*line.throttle_limit) : Json()},
                    {"memory", line.memory ? memory_json(*line.memory) : Json()}});
    } else if (terminal_) {
        fmt::print(out_, "\r\x1b[K{}", progress_text(line));
        std::fflush(out_);
        line_open_ = true;
    } else {
        fmt::print(out_, "{}\n", progress_text(line));
        std::fflush(out_);
    }
}

void ProgressPrinter::message(const std::string& level, const std::string& text) {
    end_line();
    if (json_) {
        print_json({{"event", "message"}, {"level", level}, {"text", text}});
    }
    fmt::print(stderr, "drover: {}{}\n", level == "warning" ? "warning: " : "", text);
}

void ProgressPrinter::report(const MigrationReport& report) {
    end_line();
    if (json_) {
        Json object = report_json(report);
        object["event"] = "report";
        print_json(object);
    } else if (report.result == "done" || report.result == "unclean") {
        fmt::print(out_, "{}", report_text(report));
        std::fflush(out_);
    }
}

} // namespace drover
