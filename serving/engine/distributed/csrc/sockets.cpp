// The sum over ranks on different machines, through a connection between every two of them.
//
// A small tensor is sent whole to everyone, and everyone adds all parts: one way over the network. A large one, of more
// than two ranks, is cut into a slice for each rank: everyone sends each slice to its rank, which adds the parts and
// sends the sum to everyone: two ways, but never twice the bytes of the tensor. Each element is added in rank order
// either way, so its bits depend neither on the tensor's size nor on the rank.
//
// All sending and receiving goes on together, so two ranks that send more than the connection holds do not wait for each
// other for ever. A rank that waits gives its core away after some microseconds. Every message begins with a header
// that says which sum of what it belongs to; ranks that do not agree on that notice it before they add anything.

#include <cerrno>
#include <cmath>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <vector>

#include "reduce.h"
#include "waiting.h"

struct Header {
  uint64_t number;   // of the message among all that a connection has carried in this direction
  i64 count, width;  // of the whole tensor: elements, bytes of each
};

// What went wrong, and which rank is to blame.
struct Report {
  i64 rank, error;  // error: errno, 0 when the rank has closed the connection
  Header ours, theirs;
};

// The ranks of several machines, as each of them lays it out (`sockets.Ranks`).
struct SocketRanks {
  const int* sockets;  // one for each rank, the own place unused
  i64 rank, world;
  i64 whole_bytes;     // tensors over it are cut when there are three ranks or more
  uint64_t next;       // number of the next sum, from 1
  double timeout_s;
  std::atomic<i64> waiting;  // 1 while other ranks are waited for
  Report report;
};

namespace {

constexpr double kSpin_s = 50e-6;  // about the way to a neighbouring machine and back; waking up costs some 10 more

enum Outcome { kDone, kLate, kBroken, kDiffers };

// What goes over one connection in one exchange. Bytes sent and received count the header.
struct Line {
  i64 rank; int socket;
  const void* source; i64 to_send; void* target; i64 to_receive;
  Header theirs{};
  i64 sent = 0, received = 0;
  bool sends() const { return sent < (i64)sizeof(Header) + to_send; }
  bool receives() const { return received < (i64)sizeof(Header) + to_receive; }
  bool open() const { return sends() || receives(); }
};

struct Slice { i64 first, count; };

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

// What is left of a header and a body of which `done` bytes are through; `move` is sendmsg or recvmsg.
template <class Move> i64 move_rest(Move move, int socket, void* header, void* body, i64 bytes, i64 done) {
  const i64 head = sizeof(Header), past = std::max<i64>(done - head, 0);
  iovec rest[2] = {{(char*)header + std::min(done, head), (size_t)std::max<i64>(head - done, 0)},
                   {(char*)body + past, (size_t)(bytes - past)}};
  msghdr message{};
  message.msg_iov = rest;
  message.msg_iovlen = 2;
  return move(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool would_block(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

// Sends and receives what can be without waiting. `moved` is set when that was something.
Outcome progress(Line& line, Header& ours, bool& moved, Report& report) {
  if (line.sends()) {
    const i64 n = move_rest(sendmsg, line.socket, &ours, (void*)line.source, line.to_send, line.sent);
    if (n < 0 && !would_block(errno)) return report = {line.rank, errno, ours, {}}, kBroken;
    if (n > 0) line.sent += n, moved = true;
  }
  if (line.receives()) {
    const i64 n = move_rest(recvmsg, line.socket, &line.theirs, line.target, line.to_receive, line.received);
    if (n == 0 || (n < 0 && !would_block(errno))) return report = {line.rank, n ? errno : 0, ours, {}}, kBroken;
    if (n > 0) line.received += n, moved = true;
  }
  const bool told = line.received >= (i64)sizeof(Header);
  if (told && memcmp(&line.theirs, &ours, sizeof(Header))) return report = {line.rank, 0, ours, line.theirs}, kDiffers;
  return kDone;
}

void wait_for_any(const std::vector<Line>& lines, double timeout_s) {
  std::vector<pollfd> waiting;
  for (const Line& line : lines)
    if (line.open())
      waiting.push_back({line.socket, (short)((line.sends() ? POLLOUT : 0) | (line.receives() ? POLLIN : 0)), 0});
  poll(waiting.data(), waiting.size(), (int)std::ceil(timeout_s * 1e3));
}

Outcome exchange(SocketRanks& ranks, Header ours, std::vector<Line>& lines) {
  const Waiting waiting(ranks.waiting);
  double heard = now();
  for (;;) {
    bool moved = false;
    const Line* open = nullptr;
    for (Line& line : lines) {
      const Outcome outcome = line.open() ? progress(line, ours, moved, ranks.report) : kDone;
      if (outcome != kDone) return outcome;
      if (!open && line.open()) open = &line;
    }
    if (!open) return kDone;
    const double time = now(), silence = time - heard;
    if (moved) heard = time;
    else if (silence >= ranks.timeout_s) return ranks.report = {open->rank, 0, ours, {}}, kLate;
    else if (silence >= kSpin_s) wait_for_any(lines, ranks.timeout_s - silence);
  }
}

// Sends every rank its slice, receives everyone's part of this rank's own, and adds them up in place.
template <class T> Outcome add_slice(SocketRanks& ranks, const Header& ours, T* data, const std::vector<Slice>& slices) {
  const Slice mine = slices[ranks.rank];
  static thread_local std::vector<char> room;
  room.resize(std::max<size_t>(room.size(), ranks.world * mine.count * sizeof(T)));
  std::vector<const T*> parts(ranks.world);
  std::vector<Line> lines;
  for (i64 r = 0; r < ranks.world; r++) {
    T* part = r == ranks.rank ? data + mine.first : (T*)room.data() + r * mine.count;
    parts[r] = part;
    if (r == ranks.rank) continue;
    lines.push_back({r, ranks.sockets[r], data + slices[r].first, slices[r].count * (i64)sizeof(T), part,
                     mine.count * (i64)sizeof(T)});
  }
  const Outcome outcome = exchange(ranks, ours, lines);
  if (outcome == kDone) add(data + mine.first, parts.data(), ranks.world, mine.count);
  return outcome;
}

// Sends this rank's slice to everyone and receives theirs.
template <class T> Outcome share_slice(SocketRanks& ranks, const Header& ours, T* data, const std::vector<Slice>& slices) {
  const Slice mine = slices[ranks.rank];
  std::vector<Line> lines;
  for (i64 r = 0; r < ranks.world; r++)
    if (r != ranks.rank)
      lines.push_back({r, ranks.sockets[r], data + mine.first, mine.count * (i64)sizeof(T), data + slices[r].first,
                       slices[r].count * (i64)sizeof(T)});
  return exchange(ranks, ours, lines);
}

template <class T> Outcome reduce(SocketRanks& ranks, T* data, i64 count) {
  const Header first{2 * ranks.next, count, sizeof(T)}, second{2 * ranks.next + 1, count, sizeof(T)};
  const bool whole = ranks.world == 2 || count * (i64)sizeof(T) <= ranks.whole_bytes;
  std::vector<Slice> slices(ranks.world, {0, count});
  for (i64 r = 0; r < ranks.world && !whole; r++) {
    const i64 begin = count * r / ranks.world;
    slices[r] = {begin, count * (r + 1) / ranks.world - begin};
  }
  const Outcome outcome = add_slice(ranks, first, data, slices);
  return outcome != kDone || whole ? outcome : share_slice(ranks, second, data, slices);
}

}  // namespace

// Sums `count` elements of `data` (bfloat16 or float) over the ranks, in place. Returns an Outcome; all but kDone fill
// the report, and leave the connections unfit for another sum.
extern "C" int64_t gw_socket_sum(SocketRanks* ranks, int is_bf16, void* data, i64 count) {
  const Outcome outcome = is_bf16 ? reduce(*ranks, (uint16_t*)data, count) : reduce(*ranks, (float*)data, count);
  ranks->next++;
  return outcome;
}
