/* Datagrams at a pace or as fast as they are received.
 *
 * udp serve ADDRESS PORT
 * udp run ADDRESS PORT SIZES RATE SECONDS EVERY
 *
 * SIZES: lengths of the Ethernet frames without FCS, separated by commas, used in turn. RATE: datagrams a second; 0 for as many as
 * are received: at most WINDOW are on their way, so that what is measured is throughput and not loss. EVERY: each EVERY-th datagram
 * goes to PORT + 1, 0 for none. Prints JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 16
#define WINDOW 64
#define HEADERS 42
#define MAX_SIZES 16
#define MAX_PAYLOAD 8972
#define PATIENCE_MS 20
#define ASK 0xFFFFFFFFu

struct head {
	uint32_t session, number; /* ASK: not counted, answered at once */
};

struct answer {
	uint32_t session, received;
};

static void fail(const char *what)
{
	fprintf(stderr, "udp: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct sockaddr_in address(const char *host, int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	if (inet_pton(AF_INET, host, &to.sin_addr) != 1) {
		fprintf(stderr, "udp: %s is no IPv4 address\n", host);
		exit(2);
	}
	return to;
}

static int listening(const char *host, int port)
{
	const struct sockaddr_in here = address(host, port);
	const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), buffer = 8 << 20;
	if (fd < 0 || bind(fd, (const struct sockaddr *)&here, sizeof here))
		fail("bind");
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
	return fd;
}

/* Answers go out by the first socket, whichever the datagram came in by. */
static _Noreturn void serve(const char *host, int port)
{
	struct pollfd sockets[2] = {{listening(host, port), POLLIN, 0}, {listening(host, port + 1), POLLIN, 0}};
	static struct { uint32_t session, received, answered; } counts[64];
	static uint8_t payloads[BATCH][sizeof(struct head)];
	for (;;) {
		if (poll(sockets, 2, -1) < 0 && errno != EINTR)
			fail("poll");
		for (int index = 0; index < 2; index++) {
			struct sockaddr_in from[BATCH];
			struct iovec vectors[BATCH];
			struct mmsghdr messages[BATCH] = {0};
			for (int at = 0; at < BATCH; at++) {
				vectors[at] = (struct iovec){payloads[at], sizeof payloads[at]};
				messages[at].msg_hdr = (struct msghdr){
				    .msg_name = &from[at], .msg_namelen = sizeof from[at], .msg_iov = &vectors[at], .msg_iovlen = 1};
			}
			const int got = recvmmsg(sockets[index].fd, messages, BATCH, MSG_DONTWAIT, NULL);
			for (int at = 0; at < got; at++) {
				struct head head;
				if (messages[at].msg_len < sizeof head)
					continue;
				memcpy(&head, payloads[at], sizeof head);
				const uint32_t slot = head.session % 64;
				if (counts[slot].session != head.session) {
					counts[slot].session = head.session;
					counts[slot].received = counts[slot].answered = 0;
				}
				if (head.number != ASK)
					counts[slot].received++;
				if (head.number != ASK && counts[slot].received - counts[slot].answered < BATCH)
					continue;
				counts[slot].answered = counts[slot].received;
				const struct answer answer = {head.session, counts[slot].received};
				sendto(sockets[0].fd, &answer, sizeof answer, MSG_DONTWAIT, (struct sockaddr *)&from[at], sizeof from[at]);
			}
		}
	}
}

static uint32_t session, received;

/* Take all answers there are; wait for one up to `wait_ms`. True where one came. */
static int listen_for_answers(int fd, int wait_ms)
{
	struct answer answer;
	struct pollfd one = {fd, POLLIN, 0};
	int came = 0;
	if (wait_ms && poll(&one, 1, wait_ms) <= 0)
		return 0;
	while (recv(fd, &answer, sizeof answer, MSG_DONTWAIT) == (ssize_t)sizeof answer) {
		if (answer.session == session && answer.received > received)
			received = answer.received;
		came = 1;
	}
	return came;
}

static void send_all(int fd, struct mmsghdr *messages, unsigned count)
{
	for (unsigned done = 0; done < count;) {
		const int sent = sendmmsg(fd, messages + done, count - done, 0);
		if (sent < 0 && errno != ENOBUFS && errno != EAGAIN && errno != EINTR && errno != ECONNREFUSED)
			fail("sendmmsg");
		if (sent > 0)
			done += (unsigned)sent;
	}
}

/* The count that the server ends with: it is asked until its answer no longer changes. */
static void ask(int fd, struct sockaddr_in *to)
{
	const struct head head = {session, ASK};
	for (int turn = 0, same = 0; turn < 50 && same < 2; turn++) {
		const uint32_t before = received;
		sendto(fd, &head, sizeof head, 0, (struct sockaddr *)to, sizeof *to);
		same = listen_for_answers(fd, PATIENCE_MS) && received == before ? same + 1 : 0;
	}
}

static int run(const char *host, int port, char *list, double rate, double seconds, uint32_t every)
{
	uint32_t sizes[MAX_SIZES], size_count = 0;
	for (char *part = strtok(list, ","); part && size_count < MAX_SIZES; part = strtok(NULL, ",")) {
		const uint32_t size = (uint32_t)atoi(part);
		if (size < HEADERS + sizeof(struct head) || size > HEADERS + MAX_PAYLOAD) {
			fprintf(stderr, "udp: %s is no size of a frame\n", part);
			return 2;
		}
		sizes[size_count++] = size - HEADERS;
	}
	if (!size_count)
		return 2;
	static uint8_t payloads[BATCH][MAX_PAYLOAD];
	struct sockaddr_in to[2] = {address(host, port), address(host, port + 1)};
	const int fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0)
		fail("socket");
	session = (uint32_t)now() ^ (uint32_t)getpid() << 16;
	uint64_t sent = 0, lost = 0, stalls = 0;
	const uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9);
	while (now() < end) {
		struct iovec vectors[BATCH];
		struct mmsghdr messages[BATCH] = {0};
		/* At a pace they leave one by one, as they would in production; a batch would be a burst. */
		const unsigned count = rate > 0 ? 1 : BATCH;
		for (unsigned at = 0; at < count; at++) {
			const uint64_t number = sent + at;
			const struct head head = {session, (uint32_t)number};
			memcpy(payloads[at], &head, sizeof head);
			vectors[at] = (struct iovec){payloads[at], sizes[number % size_count]};
			const int other = every && number % every == 0;
			messages[at].msg_hdr =
			    (struct msghdr){.msg_name = &to[other], .msg_namelen = sizeof to[0], .msg_iov = &vectors[at], .msg_iovlen = 1};
		}
		send_all(fd, messages, count);
		sent += count;
		listen_for_answers(fd, 0);
		if (rate > 0) {
			const uint64_t due = start + (uint64_t)((double)sent / rate * 1e9);
			if (due > now()) {
				const struct timespec until = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)};
				clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
			}
			continue;
		}
		/* Below zero where some that were given up came after all. */
		while ((int64_t)(sent - lost - received) > WINDOW - BATCH)
			if (!listen_for_answers(fd, PATIENCE_MS)) {
				lost = sent - received;
				stalls++;
			}
	}
	const double took = (double)(now() - start) / 1e9;
	ask(fd, &to[0]);
	printf("{\"seconds\": %.6f, \"sent\": %llu, \"received\": %u, \"stalls\": %llu}\n", took, (unsigned long long)sent, received,
	       (unsigned long long)stalls);
	return 0;
}

int main(int count, char **arguments)
{
	if (count == 4 && !strcmp(arguments[1], "serve"))
		serve(arguments[2], atoi(arguments[3]));
	if (count == 8 && !strcmp(arguments[1], "run"))
		return run(arguments[2], atoi(arguments[3]), arguments[4], atof(arguments[5]), atof(arguments[6]),
			   (uint32_t)atoi(arguments[7]));
	fputs("see the head of udp.c for the arguments\n", stderr);
	return 2;
}
