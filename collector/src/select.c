/* The way out of a consumer: select packets, number interfaces anew, write pcapng into a stream socket. */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define OUTLET_BYTES (256u << 10)

static pthread_mutex_t compiler = PTHREAD_MUTEX_INITIALIZER;

static int compile(struct bpf_program *program, const char *filter, char *error, size_t error_size)
{
    int result = 0;
    pthread_mutex_lock(&compiler);
    pcap_t *pcap = pcap_open_dead(DLT_EN10MB, MAX_FRAME);
    if (!pcap)
        result = fail(error, error_size, "out of memory");
    else if (pcap_compile(pcap, program, filter, 1, PCAP_NETMASK_UNKNOWN) < 0)
        result = fail(error, error_size, "%s", pcap_geterr(pcap));
    if (pcap)
        pcap_close(pcap);
    pthread_mutex_unlock(&compiler);
    return result;
}

int vtc_check_filter(const char *filter, char *error, size_t error_size)
{
    struct bpf_program program;
    if (compile(&program, filter, error, error_size) < 0)
        return -1;
    pcap_freecode(&program);
    return 0;
}

int selector_init(struct selector *selector, const struct vtc_select *select, char *error, size_t error_size)
{
    *selector = (struct selector){.every_ns = select->every_ns, .count = select->count};
    if (!select->filter || !select->filter[0])
        return 0;
    if (compile(&selector->program, select->filter, error, error_size) < 0)
        return -1;
    selector->filtered = true;
    return 0;
}

void selector_destroy(struct selector *selector)
{
    if (selector->filtered)
        pcap_freecode(&selector->program);
    selector->filtered = false;
}

/* `count` packets of an interface in each window of `every_ns`, by capture time; the first packet begins the first window. */
static bool window_open(struct selector *selector, struct outlet_interface *interface, uint64_t time_ns)
{
    if (interface->window_ns == 0 || time_ns < interface->window_ns) {
        interface->window_ns = time_ns;
        interface->taken = 0;
    } else if (time_ns - interface->window_ns >= selector->every_ns) {
        interface->window_ns += (time_ns - interface->window_ns) / selector->every_ns * selector->every_ns;
        interface->taken = 0;
    }
    return interface->taken++ < selector->count;
}

static bool selects(struct selector *selector, struct outlet_interface *interface, const struct pcapng_block *block)
{
    if (selector->filtered && !bpf_filter(selector->program.bf_insns, block->frame, block->original, block->captured))
        return false;
    if (selector->every_ns && !window_open(selector, interface, block->time_ns))
        return false;
    if (!selector->every_ns && selector->count && selector->selected >= selector->count)
        return false;
    selector->selected++;
    return true;
}

bool outlet_done(const struct outlet *outlet)
{
    const struct selector *selector = &outlet->selector;
    return outlet->broken || (!selector->every_ns && selector->count && selector->selected >= selector->count);
}

int outlet_init(struct outlet *outlet, int fd, const struct vtc_select *select, char *error, size_t error_size)
{
    *outlet = (struct outlet){.fd = fd};
    if (selector_init(&outlet->selector, select, error, error_size) < 0)
        return -1;
    outlet->buffer = malloc(OUTLET_BYTES);
    if (!outlet->buffer) {
        selector_destroy(&outlet->selector);
        return fail(error, error_size, "out of memory");
    }
    return 0;
}

void outlet_destroy(struct outlet *outlet)
{
    selector_destroy(&outlet->selector);
    free(outlet->buffer);
    free(outlet->interface);
    outlet->buffer = NULL;
    outlet->interface = NULL;
    close(outlet->fd);
}

static void send_all(struct outlet *outlet, const uint8_t *bytes, size_t length)
{
    while (length && !outlet->broken) {
        const ssize_t sent = send(outlet->fd, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0) {
            outlet->broken = true;
            return;
        }
        bytes += sent;
        length -= (size_t)sent;
        COUNT(outlet->counts.bytes, (uint64_t)sent);
    }
}

void outlet_flush(struct outlet *outlet)
{
    send_all(outlet, outlet->buffer, outlet->used);
    outlet->used = 0;
}

void outlet_put(struct outlet *outlet, const uint8_t *bytes, uint32_t length)
{
    if (OUTLET_BYTES - outlet->used < length)
        outlet_flush(outlet);
    if (length > OUTLET_BYTES) {
        send_all(outlet, bytes, length);
        return;
    }
    memcpy(outlet->buffer + outlet->used, bytes, length);
    outlet->used += length;
}

/* Begins a section, the first or another. */
void outlet_header(struct outlet *outlet, const struct vtc_config *config)
{
    uint8_t header[MAX_IDB];
    outlet->config = config;
    outlet->interfaces = 0;
    const size_t length = pcapng_put_shb(header, sizeof header, config->hardware, config->os, config->application);
    outlet_put(outlet, header, (uint32_t)length);
}

/* The outlet's own number of an interface, UINT32_MAX where it is new. */
uint32_t outlet_known(const struct outlet *outlet, uint64_t uid)
{
    for (uint32_t index = outlet->interfaces; index-- > 0;)
        if (outlet->interface[index].uid == uid)
            return index;
    return UINT32_MAX;
}

/* The same, and announces one that is new. UINT32_MAX: out of memory. */
uint32_t outlet_interface(struct outlet *outlet, uint64_t uid, const uint8_t *idb, uint32_t idb_length)
{
    const uint32_t number = outlet_known(outlet, uid);
    if (number != UINT32_MAX)
        return number;
    if (outlet->interfaces == outlet->capacity) {
        const uint32_t capacity = outlet->capacity ? outlet->capacity * 2 : 8;
        struct outlet_interface *grown = realloc(outlet->interface, capacity * sizeof *grown);
        if (!grown)
            return UINT32_MAX;
        outlet->interface = grown;
        outlet->capacity = capacity;
    }
    outlet->interface[outlet->interfaces] = (struct outlet_interface){.uid = uid};
    outlet_put(outlet, idb, idb_length);
    return outlet->interfaces++;
}

/* Copies a block that has its interface at offset 8, under the outlet's number. */
static void put_renumbered(struct outlet *outlet, uint32_t interface, const struct pcapng_block *block)
{
    if (OUTLET_BYTES - outlet->used < block->length)
        outlet_flush(outlet);
    if (block->length > OUTLET_BYTES)
        return; /* no block of ours is that long */
    uint8_t *at = outlet->buffer + outlet->used;
    memcpy(at, block->bytes, block->length);
    memcpy(at + 8, &interface, sizeof interface);
    outlet->used += block->length;
}

void outlet_packet(struct outlet *outlet, uint32_t interface, const struct pcapng_block *block)
{
    COUNT(outlet->counts.offered, 1);
    if (interface == UINT32_MAX || !selects(&outlet->selector, &outlet->interface[interface], block))
        return;
    COUNT(outlet->counts.selected, 1);
    put_renumbered(outlet, interface, block);
}

void outlet_statistics(struct outlet *outlet, uint32_t interface, const struct pcapng_block *block)
{
    if (interface != UINT32_MAX)
        put_renumbered(outlet, interface, block);
}
