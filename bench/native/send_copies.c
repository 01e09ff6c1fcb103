/* Sends numbered copies as an agent would, as fast as one core can or at a given rate, and says how many of each stream left.
 *
 * send_copies INTERFACE SOURCE_MAC DESTINATION_MAC SOURCE_IPV4 DESTINATION_IPV4 FIRST_KEY STREAMS SIZES RATE SECONDS
 *
 * SIZES: lengths of the inner frames separated by commas, used in turn. RATE: datagrams a second, 0 for as many as go.
 * The last line of output is JSON: {"seconds": …, "sent": [by stream]}.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define MAX_STREAMS 64
#define MAX_SIZES 64
#define MAX_FRAME 9000
#define FLOWS 64u
#define OUTER (14 + 20 + 8 + 12)
#define TRAILER 20

struct stream {
    uint32_t key, sequence;
    uint64_t sent;
};

static struct stream streams[MAX_STREAMS];
static uint32_t sizes[MAX_SIZES];
static uint8_t packets[BATCH][OUTER + MAX_FRAME + TRAILER];
static volatile sig_atomic_t stopped;

static void stop(int number)
{
    (void)number;
    stopped = 1;
}

static void die(const char *what)
{
    fprintf(stderr, "send_copies: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void put16(uint8_t *at, uint16_t value)
{
    value = htons(value);
    memcpy(at, &value, 2);
}

static void put32(uint8_t *at, uint32_t value)
{
    value = htonl(value);
    memcpy(at, &value, 4);
}

static void parse_mac(const char *text, uint8_t mac[6])
{
    if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 6) {
        errno = EINVAL;
        die(text);
    }
}

static uint16_t ip_checksum(const uint8_t *header)
{
    uint32_t sum = 0;
    for (int at = 0; at < 20; at += 2)
        sum += (uint32_t)(header[at] << 8 | header[at + 1]);
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)~sum;
}

/* Everything that stays the same: Ethernet, IPv4, UDP without a checksum, GRE, an inner UDP packet, version and magic. */
static void build(uint8_t *packet, uint32_t size, const uint8_t source_mac[6], const uint8_t destination_mac[6], uint32_t source,
                  uint32_t destination, uint32_t flow)
{
    memset(packet, 0, OUTER + size + TRAILER);
    memcpy(packet, destination_mac, 6);
    memcpy(packet + 6, source_mac, 6);
    put16(packet + 12, ETH_P_IP);
    uint8_t *ip = packet + 14, *udp = ip + 20, *gre = udp + 8, *inner = packet + OUTER;
    ip[0] = 0x45;
    put16(ip + 2, (uint16_t)(20 + 8 + 12 + size + TRAILER));
    put16(ip + 6, 0x4000);
    ip[8] = 64;
    ip[9] = 17;
    memcpy(ip + 12, &source, 4);
    memcpy(ip + 16, &destination, 4);
    put16(ip + 10, ip_checksum(ip));
    put16(udp, (uint16_t)(49152 + flow * 97 % 16384));
    put16(udp + 2, 4754);
    put16(udp + 4, (uint16_t)(8 + 12 + size + TRAILER));
    put16(gre, 0x3000);
    put16(gre + 2, 0x6558);
    memcpy(inner, "\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\0\x45", 15);
    put16(inner + 16, (uint16_t)(size - 14));
    inner[22] = 64;
    inner[23] = 17;
    put32(inner + 26, 0x0A000001);
    put32(inner + 30, 0x0A000002);
    put16(inner + 24, ip_checksum(inner + 14));
    put16(inner + 34, (uint16_t)(1024 + flow));
    put16(inner + 36, 9);
    put16(inner + 38, (uint16_t)(size - 34));
    uint8_t *trailer = inner + size;
    put32(trailer + 8, size);
    trailer[14] = 1;
    put32(trailer + 16, 0x76544150);
}

static void stamp(uint8_t *packet, uint32_t size, struct stream *stream, uint64_t tai_ns)
{
    uint8_t *gre = packet + 14 + 20 + 8;
    put32(gre + 4, stream->key);
    put32(gre + 8, stream->sequence++);
    memcpy(packet + OUTER + 42, &stream->sent, sizeof stream->sent < size - 42 ? sizeof stream->sent : size - 42);
    uint8_t *trailer = packet + OUTER + size;
    put32(trailer, (uint32_t)(tai_ns >> 32));
    put32(trailer + 4, (uint32_t)tai_ns);
    stream->sent++;
}

static int open_socket(const char *interface)
{
    const int fd = socket(AF_PACKET, SOCK_RAW, 0);
    if (fd < 0)
        die("socket");
    const int on = 1, buffer = 16 << 20;
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = 0, .sll_ifindex = (int)if_nametoindex(interface)};
    if (!address.sll_ifindex || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die(interface);
    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    return fd;
}

/* Sends all of the batch; what the device has no room for is offered again, so that numbers are never skipped. */
static void send_batch(int fd, struct mmsghdr *messages)
{
    unsigned done = 0;
    while (done < BATCH) {
        const int sent = sendmmsg(fd, messages + done, BATCH - done, 0);
        if (sent < 0 && errno != ENOBUFS && errno != EAGAIN && errno != EINTR)
            die("sendmmsg");
        if (sent > 0)
            done += (unsigned)sent;
    }
}

static void pace(uint64_t started_ns, uint64_t sent, double rate)
{
    const uint64_t due_ns = started_ns + (uint64_t)((double)sent / rate * 1e9);
    const uint64_t ahead_ns = 200000;
    uint64_t now = now_ns(CLOCK_MONOTONIC);
    if (due_ns > now + ahead_ns) {
        const struct timespec until = {(time_t)(due_ns / 1000000000u), (long)(due_ns % 1000000000u)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
}

int main(int count, char **arguments)
{
    if (count != 11) {
        fputs("see the head of send_copies.c for the arguments\n", stderr);
        return 2;
    }
    uint8_t source_mac[6], destination_mac[6];
    parse_mac(arguments[2], source_mac);
    parse_mac(arguments[3], destination_mac);
    const uint32_t source = inet_addr(arguments[4]), destination = inet_addr(arguments[5]);
    const uint32_t first_key = (uint32_t)strtoul(arguments[6], NULL, 0);
    const uint32_t stream_count = (uint32_t)atoi(arguments[7]);
    uint32_t size_count = 0;
    for (char *part = strtok(arguments[8], ","); part && size_count < MAX_SIZES; part = strtok(NULL, ","))
        sizes[size_count++] = (uint32_t)atoi(part);
    const double rate = atof(arguments[9]), seconds = atof(arguments[10]);
    if (!stream_count || stream_count > MAX_STREAMS || !size_count)
        return 2;
    for (uint32_t index = 0; index < size_count; index++)
        if (sizes[index] < 60 || sizes[index] > MAX_FRAME)
            return 2;
    for (uint32_t index = 0; index < stream_count; index++)
        streams[index].key = first_key + index;
    signal(SIGTERM, stop);
    signal(SIGINT, stop);

    const int fd = open_socket(arguments[1]);
    static struct iovec vectors[BATCH];
    static struct mmsghdr messages[BATCH];
    static uint32_t built[BATCH];
    for (int index = 0; index < BATCH; index++)
        messages[index].msg_hdr = (struct msghdr){.msg_iov = &vectors[index], .msg_iovlen = 1};
    uint64_t sent = 0;
    const uint64_t started_ns = now_ns(CLOCK_MONOTONIC), end_ns = started_ns + (uint64_t)(seconds * 1e9);
    while (!stopped && now_ns(CLOCK_MONOTONIC) < end_ns) {
        const uint64_t tai_ns = now_ns(CLOCK_TAI);
        for (uint32_t index = 0; index < BATCH; index++) {
            const uint32_t size = sizes[(sent + index) % size_count];
            if (built[index] != size)
                build(packets[index], size, source_mac, destination_mac, source, destination, index % FLOWS);
            built[index] = size;
            vectors[index] = (struct iovec){packets[index], OUTER + size + TRAILER};
            stamp(packets[index], size, &streams[(sent + index) % stream_count], tai_ns);
        }
        send_batch(fd, messages);
        sent += BATCH;
        if (rate > 0)
            pace(started_ns, sent, rate);
    }
    printf("{\"seconds\": %.6f, \"sent\": [", (double)(now_ns(CLOCK_MONOTONIC) - started_ns) / 1e9);
    for (uint32_t index = 0; index < stream_count; index++)
        printf("%s%llu", index ? ", " : "", (unsigned long long)streams[index].sent);
    puts("]}");
    return 0;
}
