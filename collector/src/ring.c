/* Capturing copies on an interface: a TPACKET_V3 ring shared with the kernel instead of a system call's work per datagram.
 *
 * The ring takes what needs nothing of the IP stack: whole, unfragmented datagrams to our port without a UDP checksum, which is
 * how our agents send them. The sockets take all the rest. One rule says which is which; it is the ring's filter, and it makes
 * a group of two sockets of each UDP socket, where the second, which nobody reads, swallows what the ring has had: what came in
 * by the ring's interface. So each datagram is received in exactly one way, and the first socket's drops remain a measure of
 * what was lost there. An interface that vanishes takes its packets with it; one that comes in its place is received by the
 * sockets until the ring is bound to it.
 */
#include "core.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define RING_BLOCK (256u << 10)
#define RING_FRAME 2048u
#define FEWEST_BLOCKS 8u
#define LONGEST_FILTER 128u
#define UDP_HEADER 8u

/* Longer IPv6 datagrams may have been put together from fragments, where nothing would tell. IPv4 tells by the missing DF. */
static const char rule[] = "((ip[0] = 0x45 and ip[9] = 17 and ip[6:2] = 0x4000 and ip[22:2] = %u and ip[26:2] = 0) or "
                           "(ip6[6] = 17 and ip6[4:2] <= 1240 and ip6[42:2] = %u and ip6[46:2] = 0)) and (%s)";

#define LOAD(offset) (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + (offset)))
#define JUMP_EQUAL(value, yes, no) (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), yes, no)
#define RETURN(value) (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, value)

/* A program under way: `base` is added to every offset, `yes` and `no` are what it returns. */
struct assembly {
    struct sock_filter *filter;
    uint32_t length, base, yes, no;
};

static bool put(struct assembly *assembly, struct sock_filter instruction)
{
    if (assembly->length == LONGEST_FILTER)
        return false;
    assembly->filter[assembly->length++] = instruction;
    return true;
}

/* Frames to others are none of ours. */
static bool put_rule(struct assembly *assembly, uint16_t port, const char *only)
{
    char text[sizeof rule + 16 + RING_ONLY_SIZE];
    struct bpf_program compiled;
    snprintf(text, sizeof text, rule, port, port, only[0] ? only : "ip or ip6");
    pcap_t *pcap = pcap_open_dead(DLT_RAW, MAX_FRAME);
    if (!pcap)
        return false;
    const int status = pcap_compile(pcap, &compiled, text, 1, PCAP_NETMASK_UNKNOWN);
    pcap_close(pcap);
    if (status < 0)
        return false;
    bool fits = put(assembly, LOAD(SKF_AD_PKTTYPE)) && put(assembly, JUMP_EQUAL(PACKET_HOST, 1, 0)) && put(assembly, RETURN(assembly->no));
    for (unsigned index = 0; fits && index < compiled.bf_len; index++) {
        const struct bpf_insn *from = &compiled.bf_insns[index];
        struct sock_filter to = {from->code, from->jt, from->jf, from->k};
        if (BPF_CLASS(to.code) == BPF_LD && BPF_MODE(to.code) == BPF_ABS)
            to.k += assembly->base;
        if (BPF_CLASS(to.code) == BPF_RET)
            to.k = to.k ? assembly->yes : assembly->no;
        fits = put(assembly, to);
    }
    pcap_freecode(&compiled);
    return fits;
}

static bool put_interfaces(struct assembly *assembly, const int *interfaces, uint32_t count)
{
    bool fits = put(assembly, LOAD(SKF_AD_IFINDEX));
    for (uint32_t index = 0; fits && index < count; index++)
        fits = put(assembly, JUMP_EQUAL(interfaces[index], (uint8_t)(count - index), 0));
    return fits && put(assembly, RETURN(assembly->no));
}

/* What a VLAN device is about to unwrap comes by way of that device. */
static bool put_untagged(struct assembly *assembly)
{
    return put(assembly, LOAD(SKF_AD_VLAN_TAG_PRESENT)) && put(assembly, JUMP_EQUAL(0, 1, 0)) && put(assembly, RETURN(assembly->no));
}

int ring_divert(int first, uint16_t port, const char *only, const int *interfaces, uint32_t count)
{
    struct sock_filter filter[LONGEST_FILTER];
    struct assembly assembly = {.filter = filter, .base = (uint32_t)SKF_NET_OFF, .yes = 1, .no = 0};
    if (!put_interfaces(&assembly, interfaces, count) || (count && !put_rule(&assembly, port, only))) {
        errno = EINVAL;
        return -1;
    }
    const struct sock_fprog program = {(unsigned short)assembly.length, filter};
    return setsockopt(first, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program);
}

int vtc_divert(int first, int second, uint16_t port, char *error, size_t error_size)
{
    const struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
    const struct sock_fprog drop_all = {1, (struct sock_filter *)(uintptr_t)&nothing};
    if (setsockopt(second, SOL_SOCKET, SO_ATTACH_FILTER, &drop_all, sizeof drop_all) < 0 || ring_divert(first, port, "", NULL, 0) < 0)
        return fail(error, error_size, "the sockets cannot be told what the ring takes: %s", strerror(errno));
    return 0;
}

static int attach_rule(int fd, uint16_t port, const char *only)
{
    struct sock_filter filter[LONGEST_FILTER];
    struct assembly assembly = {.filter = filter, .base = 0, .yes = MAX_FRAME, .no = 0};
    if (!put_untagged(&assembly) || !put_rule(&assembly, port, only)) {
        errno = EINVAL;
        return -1;
    }
    const struct sock_fprog program = {(unsigned short)assembly.length, filter};
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

static int map_ring(struct ring *ring, int fd, uint32_t bytes)
{
    const int version = TPACKET_V3;
    const uint32_t blocks = bytes / RING_BLOCK > FEWEST_BLOCKS ? bytes / RING_BLOCK : FEWEST_BLOCKS;
    const struct tpacket_req3 request = {
        .tp_block_size = RING_BLOCK,
        .tp_block_nr = blocks,
        .tp_frame_size = RING_FRAME,
        .tp_frame_nr = RING_BLOCK / RING_FRAME * blocks,
        .tp_retire_blk_tov = RING_RETIRE_NS / 1000000,
    };
    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) < 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof request) < 0)
        return -1;
    ring->bytes = (size_t)RING_BLOCK * blocks;
    ring->map = mmap(NULL, ring->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (ring->map == MAP_FAILED) {
        ring->map = NULL;
        return -1;
    }
    ring->blocks = blocks;
    return 0;
}

static int bind_to(int fd, int interface)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = interface};
    return bind(fd, (struct sockaddr *)&address, sizeof address);
}

int ring_open(struct ring *ring, int fd, uint32_t interface, uint16_t port, const char *only, uint32_t bytes)
{
    *ring = (struct ring){.interface = (int)interface};
    if (!if_indextoname(interface, ring->name) || attach_rule(fd, port, only) < 0 || map_ring(ring, fd, bytes) < 0)
        return -1;
    return bind_to(fd, ring->interface);
}

static bool is_up(int fd, const char *name)
{
    struct ifreq request = {0};
    memcpy(request.ifr_name, name, sizeof request.ifr_name);
    return ioctl(fd, SIOCGIFFLAGS, &request) == 0 && request.ifr_flags & IFF_UP;
}

/* The kernel tells once, by an error that poll(2) reports until it is read. It captures again by itself when an interface comes
 * up, but never on one that took the place of another. */
bool ring_look(struct ring *ring, int fd)
{
    int failed = 0;
    socklen_t size = sizeof failed;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &size) == 0 && failed && !ring->down) {
        ring->down = true;
        ring->outages++;
    }
    if (!ring->down || !is_up(fd, ring->name))
        return false;
    const int interface = (int)if_nametoindex(ring->name);
    if (interface == 0 || bind_to(fd, interface) < 0)
        return false;
    const bool moved = interface != ring->interface;
    ring->interface = interface;
    ring->down = false;
    return moved;
}

void ring_close(struct ring *ring)
{
    if (ring->map)
        munmap(ring->map, ring->bytes);
    ring->map = NULL;
}

static bool ipv4_sums_up(const uint8_t *header)
{
    uint32_t sum = 0;
    for (int at = 0; at < 20; at += 2) {
        uint16_t half;
        memcpy(&half, header + at, sizeof half);
        sum += half;
    }
    sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)(sum + (sum >> 16)) == 0xFFFF;
}

static uint32_t half_at(const uint8_t *at) { return (uint32_t)at[0] << 8 | at[1]; }

bool ring_unwrap(const uint8_t *packet, size_t length, uint8_t address[16], const uint8_t **payload, size_t *payload_length)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
    if (length < 20 + UDP_HEADER)
        return false;
    const uint8_t *udp = packet + 20;
    size_t end = half_at(packet + 2);
    if (packet[0] == 0x45) {
        if (!ipv4_sums_up(packet))
            return false;
        memcpy(address, mapped, sizeof mapped);
        memcpy(address + 12, packet + 12, 4);
    } else {
        if (packet[0] >> 4 != 6 || length < 40 + UDP_HEADER)
            return false;
        udp = packet + 40;
        end = 40 + half_at(packet + 4);
        memcpy(address, packet + 8, 16);
    }
    const size_t claimed = half_at(udp + 4);
    if (end > length || claimed < UDP_HEADER || (size_t)(udp - packet) + claimed > end)
        return false;
    *payload = udp + UDP_HEADER;
    *payload_length = claimed - UDP_HEADER;
    return true;
}

static void ingest_block(struct vtc_collector *collector, const struct tpacket_block_desc *block)
{
    const uint8_t *at = (const uint8_t *)block + block->hdr.bh1.offset_to_first_pkt;
    for (uint32_t left = block->hdr.bh1.num_pkts; left; left--) {
        const struct tpacket3_hdr *header = (const struct tpacket3_hdr *)(const void *)at;
        const uint8_t *payload;
        uint8_t address[16];
        size_t length;
        at += header->tp_next_offset;
        COUNT(collector->receive_counts.captured, 1);
        __builtin_prefetch(at);
        __builtin_prefetch(at + 64);
        __builtin_prefetch(at + 128);
        if (ring_unwrap((const uint8_t *)header + header->tp_net, header->tp_snaplen, address, &payload, &length)) {
            ingest(collector, VTC_GRE_UDP, address, payload, length);
        } else {
            COUNT(collector->receive_counts.datagrams, 1);
            COUNT(collector->receive_counts.malformed, 1);
        }
    }
}

uint32_t ring_receive(struct vtc_collector *collector, struct ring *ring, uint32_t most)
{
    uint32_t blocks = 0;
    for (; blocks < most; blocks++) {
        struct tpacket_block_desc *block = (void *)(ring->map + (size_t)ring->next * RING_BLOCK);
        if (!(__atomic_load_n(&block->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            break;
        ingest_block(collector, block);
        __atomic_store_n(&block->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        ring->next = (ring->next + 1) % ring->blocks;
    }
    return blocks;
}

uint64_t ring_new_drops(int fd)
{
    struct tpacket_stats_v3 statistics = {0}; /* the kernel starts from 0 each time it is asked */
    socklen_t size = sizeof statistics;
    if (getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &statistics, &size) < 0)
        return 0;
    return statistics.tp_drops;
}
