/* Sockets: batches off the kernel, a pause between them so that datagrams gather, and what the kernel dropped for want of room. */
#include "core.h"

#include <errno.h>
#include <linux/sock_diag.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef UDP_NO_CHECK6_RX
#define UDP_NO_CHECK6_RX 102
#endif

#define BATCH 128u
#define RING_BATCH 1u /* blocks; the table is locked meanwhile */
/* Room for the largest datagram; the odd lines keep the buffers' first bytes from falling into the same cache set. */
#define BUFFER_STRIDE (65536u + 64u * 7u)
#define CONTROL_SIZE 64u
#define TICK_NS (100 * NS_PER_SECOND / 1000)
#define LONGEST_PAUSE_NS 500000u
#define DRAIN_NS (2 * NS_PER_SECOND)

static void enlarge(int fd, uint32_t bytes)
{
    const int wanted = (int)bytes;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &wanted, sizeof wanted) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &wanted, sizeof wanted); /* never fails, gives at most rmem_max */
}

static bool is_shared(int fd)
{
    int on = 0;
    socklen_t size = sizeof on;
    return getsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, &size) == 0 && on;
}

static bool is_udp(uint32_t source) { return source == VTC_GRE_UDP || source == VTC_VXLAN; }

static int allocate(struct source *source)
{
    source->messages = calloc(BATCH, sizeof *source->messages);
    source->vectors = calloc(BATCH, sizeof *source->vectors);
    source->names = calloc(BATCH, sizeof *source->names);
    source->controls = calloc(BATCH, CONTROL_SIZE);
    source->buffers = mmap(NULL, (size_t)BATCH * BUFFER_STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (source->buffers == MAP_FAILED)
        source->buffers = NULL;
    if (!source->messages || !source->vectors || !source->names || !source->controls || !source->buffers)
        return -1;
    for (uint32_t index = 0; index < BATCH; index++) {
        source->vectors[index] = (struct iovec){source->buffers + (size_t)index * BUFFER_STRIDE, 65536};
        source->messages[index].msg_hdr = (struct msghdr){
            .msg_name = &source->names[index],
            .msg_namelen = sizeof *source->names,
            .msg_iov = &source->vectors[index],
            .msg_iovlen = 1,
            .msg_control = source->grouped ? source->controls + index * CONTROL_SIZE : NULL,
            .msg_controllen = source->grouped ? CONTROL_SIZE : 0,
        };
    }
    return 0;
}

int vtc_add_socket(struct vtc_collector *collector, uint32_t kind, int fd, uint32_t receive_buffer, char *error, size_t error_size)
{
    const int on = 1;
    if (collector->source_count == MAX_SOURCES || kind > VTC_GRE_RAW6)
        return fail(error, error_size, "at most %d sockets", MAX_SOURCES);
    struct source *source = &collector->sources[collector->source_count];
    *source = (struct source){.kind = kind, .fd = fd};
    enlarge(fd, receive_buffer);
    source->shared = kind == VTC_GRE_UDP && is_shared(fd);
    if (is_udp(kind)) {
        setsockopt(fd, SOL_UDP, UDP_NO_CHECK6_RX, &on, sizeof on); /* an IPv4 socket has no use for it and refuses */
        source->grouped = setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof on) == 0;
    }
    collector->source_count++;
    if (allocate(source) < 0)
        return fail(error, error_size, "out of memory");
    return 0;
}

/* Tells the sockets what the rings take now. */
static int divert(struct vtc_collector *collector)
{
    int interfaces[MAX_SOURCES];
    uint32_t rings = 0;
    for (uint32_t index = 0; index < collector->source_count; index++)
        if (collector->sources[index].kind == VTC_RING)
            interfaces[rings++] = collector->sources[index].ring.interface;
    for (uint32_t index = 0; index < collector->source_count; index++) {
        const struct source *source = &collector->sources[index];
        if (source->shared && ring_divert(source->fd, collector->ring_port, collector->ring_only, interfaces, rings) < 0)
            return -1;
    }
    return 0;
}

int vtc_add_ring(struct vtc_collector *collector, int fd, uint32_t interface, uint32_t port, const char *only, uint32_t bytes, char *error,
                 size_t error_size)
{
    struct source *source = &collector->sources[collector->source_count];
    if (collector->source_count == MAX_SOURCES || strlen(only) >= RING_ONLY_SIZE) {
        close(fd);
        return fail(error, error_size, "at most %d sockets", MAX_SOURCES);
    }
    *source = (struct source){.kind = VTC_RING, .fd = fd};
    collector->ring_port = (uint16_t)port;
    strcpy(collector->ring_only, only);
    collector->source_count++;
    if (ring_open(&source->ring, fd, interface, (uint16_t)port, only, bytes) == 0 && divert(collector) == 0)
        return 0;
    fail(error, error_size, "the ring cannot be set up: %s", strerror(errno));
    collector->source_count--;
    ring_close(&source->ring);
    close(fd);
    return -1;
}

void receive_close(struct vtc_collector *collector)
{
    for (uint32_t index = 0; index < collector->source_count; index++) {
        struct source *source = &collector->sources[index];
        ring_close(&source->ring);
        close(source->fd);
        free(source->messages);
        free(source->vectors);
        free(source->names);
        free(source->controls);
        if (source->buffers)
            munmap(source->buffers, (size_t)BATCH * BUFFER_STRIDE);
    }
    collector->source_count = 0;
}

/* The kernel's count is the one that SO_RXQ_OVFL attaches to datagrams, read here without waiting for the next datagram. */
static uint64_t new_drops(struct source *source)
{
    if (source->kind == VTC_RING)
        return ring_new_drops(source->fd);
    uint32_t memory[SK_MEMINFO_VARS] = {0};
    socklen_t size = sizeof memory;
    if (getsockopt(source->fd, SOL_SOCKET, SO_MEMINFO, memory, &size) < 0)
        return 0;
    const uint32_t drops = memory[SK_MEMINFO_DROPS] - (uint32_t)source->drops;
    source->drops += drops;
    return drops;
}

uint64_t receive_refresh_drops(struct vtc_collector *collector)
{
    uint64_t drops = 0;
    for (uint32_t index = 0; index < collector->source_count; index++)
        drops += new_drops(&collector->sources[index]);
    return drops;
}

static void address_of(const struct sockaddr_storage *name, uint8_t address[16])
{
    if (name->ss_family == AF_INET6) {
        memcpy(address, &((const struct sockaddr_in6 *)(const void *)name)->sin6_addr, 16);
        return;
    }
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
    memcpy(address, mapped, sizeof mapped);
    memcpy(address + 12, &((const struct sockaddr_in *)(const void *)name)->sin_addr, 4);
}

/* Length of each datagram in a buffer that UDP_GRO filled with several; the last may be shorter. */
static size_t segment_length(struct msghdr *header, size_t length)
{
    for (struct cmsghdr *control = CMSG_FIRSTHDR(header); control; control = CMSG_NXTHDR(header, control)) {
        if (control->cmsg_level == SOL_UDP && control->cmsg_type == UDP_GRO) {
            int size;
            memcpy(&size, CMSG_DATA(control), sizeof size);
            return size > 0 ? (size_t)size : length;
        }
    }
    return length;
}

static void ingest_message(struct vtc_collector *collector, struct source *source, uint32_t index)
{
    struct mmsghdr *message = &source->messages[index];
    const uint8_t *payload = source->vectors[index].iov_base;
    uint8_t address[16];
    size_t left = message->msg_len;
    address_of(&source->names[index], address);
    const size_t step = message->msg_hdr.msg_controllen ? segment_length(&message->msg_hdr, left) : left;
    do {
        const size_t length = left < step ? left : step;
        ingest(collector, source->kind, address, payload, length);
        payload += length;
        left -= length;
    } while (left);
    message->msg_hdr.msg_namelen = sizeof *source->names;
    if (source->grouped)
        message->msg_hdr.msg_controllen = CONTROL_SIZE;
}

static void read_error(struct vtc_collector *collector, const struct source *source)
{
    int failed = 0;
    socklen_t size = sizeof failed;
    if (getsockopt(source->fd, SOL_SOCKET, SO_ERROR, &failed, &size) == 0 && failed)
        COUNT(collector->receive_counts.receive_errors, 1);
}

/* Returns how many messages came; BATCH means there may be more. */
static uint32_t receive_batch(struct vtc_collector *collector, struct source *source)
{
    const int got = recvmmsg(source->fd, source->messages, BATCH, MSG_DONTWAIT, NULL);
    if (got < 0) {
        if (errno != EAGAIN && errno != EINTR)
            COUNT(collector->receive_counts.receive_errors, 1);
        return 0;
    }
    collector->real_ns = clock_ns(CLOCK_REALTIME);
    collector->drops_fresh = false;
    COUNT(collector->receive_counts.receive_batches, 1);
    pthread_mutex_lock(&collector->table_lock);
    for (int index = 0; index < got; index++)
        ingest_message(collector, source, (uint32_t)index);
    pthread_mutex_unlock(&collector->table_lock);
    return (uint32_t)got;
}

/* Blocks instead of messages; in the ring a packet stays unseen until its block is full or retired. */
static uint32_t receive_ring(struct vtc_collector *collector, struct source *source)
{
    collector->real_ns = clock_ns(CLOCK_REALTIME);
    collector->drops_fresh = false;
    pthread_mutex_lock(&collector->table_lock);
    const uint32_t blocks = ring_receive(collector, &source->ring, RING_BATCH);
    pthread_mutex_unlock(&collector->table_lock);
    if (blocks)
        COUNT(collector->receive_counts.receive_batches, 1);
    return blocks;
}

/* One batch of each source. `drained`: no source had more than that. */
static uint32_t receive_round(struct vtc_collector *collector, bool *drained)
{
    uint32_t total = 0;
    uint64_t unseen_ns = 0;
    const uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    collector->now_ns = now_ns;
    *drained = true;
    for (uint32_t index = 0; index < collector->source_count; index++) {
        struct source *source = &collector->sources[index];
        const bool captures = source->kind == VTC_RING;
        const uint32_t got = captures ? receive_ring(collector, source) : receive_batch(collector, source);
        total += got;
        *drained = *drained && got < (captures ? RING_BATCH : BATCH);
        if (captures)
            unseen_ns = 2 * RING_RETIRE_NS;
    }
    if (*drained)
        collector->drained_ns = now_ns - unseen_ns;
    return total;
}

/* A socket's error would wake every poll(2) until it is read. */
static void look_at_sources(struct vtc_collector *collector)
{
    uint64_t down = 0, outages = 0;
    uint32_t rings = 0;
    bool moved = false;
    for (uint32_t index = 0; index < collector->source_count; index++) {
        struct source *source = &collector->sources[index];
        if (source->kind != VTC_RING) {
            read_error(collector, source);
            continue;
        }
        moved = ring_look(&source->ring, source->fd) || moved;
        outages += source->ring.outages;
        down |= (uint64_t)source->ring.down << rings++;
    }
    PUT(collector->receive_counts.rings_down, down);
    PUT(collector->receive_counts.ring_outages, outages);
    if (moved && divert(collector) < 0)
        COUNT(collector->receive_counts.receive_errors, 1);
}

static void housekeep(struct vtc_collector *collector, uint64_t *ticked_ns)
{
    const bool tick = collector->now_ns - *ticked_ns >= TICK_NS;
    if (tick)
        look_at_sources(collector);
    if (!tick && !collector->dirty)
        return;
    pthread_mutex_lock(&collector->table_lock);
    ingest_flush(collector, collector->config.flush_ns);
    if (tick) {
        *ticked_ns = collector->now_ns;
        ingest_tick(collector);
    }
    pthread_mutex_unlock(&collector->table_lock);
}

/* How long datagrams may gather: a quarter of the smallest buffer at a million a second, 1 KiB each with their overhead. */
static uint64_t pause_of(const struct vtc_collector *collector)
{
    uint64_t pause_ns = LONGEST_PAUSE_NS;
    for (uint32_t index = 0; index < collector->source_count; index++) {
        int bytes = 0;
        socklen_t size = sizeof bytes;
        if (collector->sources[index].kind == VTC_RING) /* its packets wait in the ring, which is no part of this buffer */
            continue;
        if (getsockopt(collector->sources[index].fd, SOL_SOCKET, SO_RCVBUF, &bytes, &size) < 0)
            continue;
        const uint64_t fits_ns = (uint64_t)bytes / 1024 / 4 * 1000;
        if (fits_ns < pause_ns)
            pause_ns = fits_ns;
    }
    return pause_ns;
}

static void wait_readable(struct vtc_collector *collector)
{
    struct pollfd polls[MAX_SOURCES];
    bool failed = false;
    for (uint32_t index = 0; index < collector->source_count; index++)
        polls[index] = (struct pollfd){.fd = collector->sources[index].fd, .events = POLLIN};
    const uint64_t timeout_ns = collector->dirty ? collector->config.flush_ns / 2 : TICK_NS;
    poll(polls, collector->source_count, (int)(timeout_ns / 1000000) + 1);
    COUNT(collector->receive_counts.wakeups, 1);
    for (uint32_t index = 0; index < collector->source_count; index++)
        failed = failed || polls[index].revents & (POLLERR | POLLHUP | POLLNVAL);
    if (failed)
        look_at_sources(collector);
}

bool receive_pass(struct vtc_collector *collector)
{
    bool drained;
    receive_round(collector, &drained);
    pthread_mutex_lock(&collector->table_lock);
    ingest_flush(collector, 0);
    ingest_tick(collector);
    pthread_mutex_unlock(&collector->table_lock);
    return drained;
}

static void finish(struct vtc_collector *collector)
{
    const uint64_t started_ns = collector->now_ns;
    bool drained = false;
    do
        receive_round(collector, &drained);
    while (!drained && collector->now_ns - started_ns < DRAIN_NS);
    pthread_mutex_lock(&collector->table_lock);
    ingest_tick(collector);
    pthread_mutex_unlock(&collector->table_lock);
}

void *receive_run(void *argument)
{
    struct vtc_collector *collector = argument;
    const uint64_t pause_ns = pause_of(collector);
    const struct timespec pause = {0, (long)pause_ns};
    uint64_t ticked_ns = 0;
    pthread_setname_np(pthread_self(), "vtc-receive");
    while (!atomic_load(&collector->stopping)) {
        bool drained;
        const uint32_t got = receive_round(collector, &drained);
        housekeep(collector, &ticked_ns);
        if (!drained)
            continue;
        if (got)
            nanosleep(&pause, NULL);
        else
            wait_readable(collector);
    }
    finish(collector);
    return NULL;
}
