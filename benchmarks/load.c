/* Thousands of clients of an event stream in one process, with the publisher beside them; and a bare server, which is
 * the limit that every other server is measured against. Compiled on the spot by benchmarks/relay.py:
 *
 *     cc -O2 -o load load.c
 *     load clients HOST PORT REDIS_PORT TASKS TEMPLATE [POST_PORT]   commands on stdin, an answer of JSON for each
 *     load server PORT REDIS_PORT                                    GET /tasks/ID/events, until it is killed
 *
 * TASKS: a file, `ID VERSION` a line. TEMPLATE: a file with the JSON of a state, $I being the task's id, $V the version,
 * $T the time (CLOCK_MONOTONIC, ns). Published is `VERSION  JSON` to `headway:task:ID:live`, as progress.lua does; with
 * POST_PORT instead the JSON alone by POST /pub/ID.
 *
 *     connect N TASKS IN_FLIGHT   N more clients, client i watching task i % TASKS; IN_FLIGHT at a time. Answers when
 *                                 all have had the headers, and the first event where they are to get a snapshot.
 *     run RATE EVENTS SECONDS     publishes EVENTS, RATE a second (0: at once), to each task in turn; answers when every
 *                                 client of each has had them, or after SECONDS
 *     publish EVENTS              publishes at once and answers when Redis has them
 *     wait SECONDS                answers as `run`, for what `publish` sent
 *
 * An event counts by the "version" in its data: one that is skipped is `lost`, one that comes again `doubled`.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_BYTES (256 * 1024)
#define LINE_BYTES (32 * 1024)
#define TICK_NS 1000000ull

static void die(const char *what) { perror(what); exit(1); }

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void *grow(void *old, size_t bytes) {
    void *new = realloc(old, bytes);
    if (!new) die("realloc");
    return new;
}

static void allow_many_files(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static int connected_to(const char *host, int port, int nonblocking) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, host, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), 0);
    if (fd < 0) die("socket");
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) die("connect");
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return fd;
}

static void watch(int epoll, int fd, uint32_t events, void *owner, int change) {
    struct epoll_event e = {.events = events, .data.ptr = owner};
    if (epoll_ctl(epoll, change ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &e) < 0) die("epoll_ctl");
}

/* Bytes that wait to be written. */
struct outgoing { char *data; size_t start, end, room; };

static void append(struct outgoing *o, const void *data, size_t n) {
    if (o->start == o->end) o->start = o->end = 0;
    if (o->end + n > o->room) o->data = grow(o->data, o->room = (o->end + n) * 2);
    memcpy(o->data + o->end, data, n);
    o->end += n;
}

/* 1: all is written. 0: the rest waits. -1: the other side is gone. */
static int flush(struct outgoing *o, int fd) {
    while (o->start < o->end) {
        ssize_t n = send(fd, o->data + o->start, o->end - o->start, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) return errno == EAGAIN ? 0 : -1;
        o->start += (size_t)n;
    }
    return 1;
}

/* ---- clients ---------------------------------------------------------------------------------------------------- */

struct task { char id[64]; uint64_t version; int watchers; };

struct client {
    int fd, task;
    enum { CONNECTING, HEADERS, OPEN, CLOSED } state;
    int chunked, matched;                      /* of the blank line after the headers */
    enum { SIZE, SIZE_END, DATA, DATA_END } part;
    size_t left;                               /* of the chunk */
    uint64_t version;
    char *line;                                /* the beginning of a line whose end has not come */
    size_t line_bytes;
};

static struct task *tasks;
static int task_count, live_tasks, epoll_fd, publisher, post_port, opened, closed_by_server, refused;
static struct client **clients;
static int client_count, with_event;
static const char *host, *template;
static int port;
static uint64_t delivered, lost, doubled, published_to;    /* published_to: deliveries that are owed */
static uint64_t next_event;
static uint32_t *latencies;                                 /* µs */
static size_t latency_count, latency_room;
static char buffer[READ_BYTES];
static struct outgoing outbox;
static uint64_t answers_due;

static void on_line(struct client *c, const char *line, size_t n) {
    if (n < 6 || memcmp(line, "data:", 5)) return;
    const char *found = memmem(line, n, "\"version\":", 10);
    if (!found) return;
    uint64_t version = strtoull(found + 10, NULL, 10);
    if (!c->version) with_event++;
    else if (version <= c->version) { doubled++; return; }
    else if (version > c->version + 1) lost += version - c->version - 1;
    c->version = version;
    const char *stamp = memmem(line, n, "\"message\":\"@", 12);
    if (!stamp) return;                        /* the snapshot */
    delivered++;
    if (latency_count == latency_room) latencies = grow(latencies, (latency_room = latency_room * 2 + 4096) * 4);
    latencies[latency_count++] = (uint32_t)((now_ns() - strtoull(stamp + 12, NULL, 10)) / 1000);
}

static void on_body(struct client *c, const char *data, size_t n) {
    while (n) {
        const char *end = memchr(data, '\n', n);
        size_t part = end ? (size_t)(end - data) : n;
        if (!end || c->line_bytes) {
            if (!c->line) c->line = grow(NULL, LINE_BYTES);
            if (c->line_bytes + part >= LINE_BYTES) part = LINE_BYTES - c->line_bytes - 1;
            memcpy(c->line + c->line_bytes, data, part);
            c->line_bytes += part;
            if (!end) return;
            c->line[c->line_bytes] = 0;
            on_line(c, c->line, c->line_bytes);
            c->line_bytes = 0;
        } else on_line(c, data, part);
        n -= (size_t)(end - data) + 1;
        data = end + 1;
    }
    if (c->line && !c->line_bytes) { free(c->line); c->line = NULL; }
}

static void on_chunked(struct client *c, const char *data, size_t n) {
    while (n) {
        if (c->part == SIZE) {
            char x = *data++;
            n--;
            if (x >= '0' && x <= '9') c->left = c->left * 16 + (size_t)(x - '0');
            else if ((x | 32) >= 'a' && (x | 32) <= 'f') c->left = c->left * 16 + (size_t)((x | 32) - 'a' + 10);
            else if (x == '\n') c->part = DATA;
        } else if (c->part == DATA) {
            size_t part = n < c->left ? n : c->left;
            on_body(c, data, part);
            data += part; n -= part; c->left -= part;
            if (!c->left) c->part = DATA_END;
        } else {
            if (*data == '\n') c->part = SIZE;
            data++; n--;
        }
    }
}

static void on_read(struct client *c, char *data, size_t n) {
    while (n && c->state == HEADERS) {
        static const char end[] = "\r\n\r\n";
        char x = *data++;
        n--;
        if (c->line_bytes < LINE_BYTES - 1) {
            if (!c->line) c->line = grow(NULL, LINE_BYTES);
            c->line[c->line_bytes++] = (char)(x >= 'A' && x <= 'Z' ? x | 32 : x);
        }
        c->matched = x == end[c->matched] ? c->matched + 1 : x == '\r';
        if (c->matched == 4) {
            c->line[c->line_bytes] = 0;
            c->chunked = strstr(c->line, "transfer-encoding: chunked") != NULL;
            if (!strstr(c->line, " 200 ")) refused++;
            c->state = OPEN;
            c->line_bytes = 0;
            free(c->line);
            c->line = NULL;
            opened++;
        }
    }
    if (n) c->chunked ? on_chunked(c, data, n) : on_body(c, data, n);
}

static void add_client(int tasks_watched) {
    struct client *c = calloc(1, sizeof *c);
    c->task = client_count % tasks_watched;
    tasks[c->task].watchers++;
    clients = grow(clients, sizeof *clients * (size_t)(client_count + 1));
    clients[client_count++] = c;
    c->fd = connected_to(host, port, 1);
    watch(epoll_fd, c->fd, EPOLLOUT, c, 0);
}

static void on_client(struct client *c) {
    if (c->state == CLOSED) return;
    if (c->state == CONNECTING) {
        char request[256];
        int n = snprintf(request, sizeof request, "GET /tasks/%s/events HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n",
                         tasks[c->task].id);
        if (send(c->fd, request, (size_t)n, MSG_NOSIGNAL) != n) goto gone;
        c->state = HEADERS;
        watch(epoll_fd, c->fd, EPOLLIN, c, 1);
        return;
    }
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n > 0) { on_read(c, buffer, (size_t)n); return; }
    if (n < 0 && errno == EAGAIN) return;
gone:
    c->state = CLOSED;
    closed_by_server++;
    close(c->fd);
}

static void publish_one(void) {
    struct task *t = &tasks[next_event++ % (uint64_t)live_tasks];
    static char data[LINE_BYTES], head[256], version[32];
    size_t n = 0;
    t->version++;
    for (const char *p = template; *p; p++) {
        if (*p != '$') { data[n++] = *p; continue; }
        p++;
        if (*p == 'I') n += (size_t)sprintf(data + n, "%s", t->id);
        else if (*p == 'V') n += (size_t)sprintf(data + n, "%llu", (unsigned long long)t->version);
        else n += (size_t)sprintf(data + n, "%llu", (unsigned long long)now_ns());
    }
    int h;
    if (post_port) {
        h = sprintf(head, "POST /pub/%s HTTP/1.1\r\nHost: bench\r\nContent-Length: %zu\r\n\r\n", t->id, n);
        append(&outbox, head, (size_t)h);
        append(&outbox, data, n);
    } else {
        int v = sprintf(version, "%llu  ", (unsigned long long)t->version);
        h = sprintf(head, "*3\r\n$7\r\nPUBLISH\r\n$%zu\r\nheadway:task:%s:live\r\n$%zu\r\n%s", strlen(t->id) + 18, t->id,
                    n + (size_t)v, version);
        append(&outbox, head, (size_t)h);
        append(&outbox, data, n);
        append(&outbox, "\r\n", 2);
    }
    published_to += (uint64_t)t->watchers;
    answers_due++;
}

static void on_publisher(void) {
    ssize_t n = recv(publisher, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n <= 0 && !(n < 0 && errno == EAGAIN)) die("the publisher's connection");
    char first = post_port ? 'H' : ':';        /* HTTP/1.1 2xx, or :subscribers */
    for (ssize_t i = 0; i < n; i++)
        if (buffer[i] == first && (!post_port || (i + 4 < n && !memcmp(buffer + i, "HTTP/", 5)))) answers_due--;
}

static void turn(int timeout_ms) {
    struct epoll_event events[512];
    if (flush(&outbox, publisher) < 0) die("publish");
    if (outbox.start < outbox.end && timeout_ms > 1) timeout_ms = 1;
    int n = epoll_wait(epoll_fd, events, 512, timeout_ms);
    for (int i = 0; i < n; i++)
        if (events[i].data.ptr) on_client(events[i].data.ptr);
        else on_publisher();
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void report(double seconds) {
    qsort(latencies, latency_count, sizeof *latencies, ascending);
    double at[3] = {0, 0, 0};
    if (latency_count) {
        at[0] = latencies[latency_count / 2];
        at[1] = latencies[latency_count * 99 / 100];
        at[2] = latencies[latency_count - 1];
    }
    printf("{\"delivered\":%llu,\"owed\":%llu,\"lost\":%llu,\"doubled\":%llu,\"closed\":%d,\"refused\":%d,\"clients\":%d,"
           "\"with_event\":%d,\"seconds\":%.4f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f}\n",
           (unsigned long long)delivered, (unsigned long long)published_to, (unsigned long long)lost,
           (unsigned long long)doubled, closed_by_server, refused, client_count, with_event, seconds, at[0] / 1000,
           at[1] / 1000, at[2] / 1000);
    fflush(stdout);
    delivered = published_to = lost = doubled = 0;
    latency_count = 0;
}

static void run_clients(char **argv, int argc) {
    host = argv[0];
    port = atoi(argv[1]);
    if (argc > 5) post_port = atoi(argv[5]);
    FILE *file = fopen(argv[3], "r");
    if (!file) die(argv[3]);
    char id[64];
    unsigned long long version;
    while (fscanf(file, "%63s %llu", id, &version) == 2) {
        tasks = grow(tasks, sizeof *tasks * (size_t)(task_count + 1));
        memset(&tasks[task_count], 0, sizeof *tasks);
        strcpy(tasks[task_count].id, id);
        tasks[task_count++].version = version;
    }
    fclose(file);
    if (!(file = fopen(argv[4], "r"))) die(argv[4]);
    static char text[LINE_BYTES / 2];
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    template = text;
    fclose(file);
    epoll_fd = epoll_create1(0);
    publisher = connected_to("127.0.0.1", post_port ? post_port : atoi(argv[2]), 0);
    watch(epoll_fd, publisher, EPOLLIN, NULL, 0);
    char command[256];
    while (fgets(command, sizeof command, stdin)) {
        uint64_t begun = now_ns();
        unsigned long long a = 0, b = 0;
        double rate = 0, seconds = 0;
        int flight = 0;
        if (sscanf(command, "connect %llu %llu %d", &a, &b, &flight) == 3) {
            int before = client_count, events_before = with_event, opened_before = opened;
            live_tasks = (int)b;
            uint64_t patience = begun + 60000000000ull;
            while (opened - opened_before + closed_by_server < (int)a && now_ns() < patience) {
                while (client_count - before < (int)a && client_count - before - (opened - opened_before) < flight)
                    add_client(live_tasks);
                turn(100);
            }
            uint64_t opened_at = now_ns();     /* a snapshot comes soon, or this server sends none */
            while (with_event - events_before < (int)a && now_ns() < opened_at + 1000000000ull) turn(10);
            report((double)((with_event - events_before < (int)a ? opened_at : now_ns()) - begun) / 1e9);
        } else if (sscanf(command, "run %lf %llu %lf", &rate, &a, &seconds) == 3) {
            uint64_t sent = 0;
            while (sent < a) {
                uint64_t due = rate > 0 ? (uint64_t)((double)(now_ns() - begun) / 1e9 * rate) : a;
                while (sent < a && sent < due) { publish_one(); sent++; }
                turn(1);
            }
            uint64_t last = now_ns();
            while (delivered + lost < published_to && now_ns() < last + (uint64_t)(seconds * 1e9)) turn(10);
            report((double)(now_ns() - begun) / 1e9);
        } else if (sscanf(command, "publish %llu", &a) == 1) {
            while (a--) publish_one();
            while (answers_due) turn(10);
            printf("{}\n");
            fflush(stdout);
        } else if (sscanf(command, "wait %lf", &seconds) == 1) {
            while (delivered + lost < published_to && now_ns() < begun + (uint64_t)(seconds * 1e9)) turn(10);
            report((double)(now_ns() - begun) / 1e9);
        }
    }
}

/* ---- the bare server -------------------------------------------------------------------------------------------- */

struct watcher {
    int fd;
    char request[2048];
    size_t request_bytes;
    struct channel *channel;
    struct outgoing waiting;
};

struct channel { char name[96]; struct watcher **watchers; int count, acknowledged; struct channel *next; };

static struct channel *channels[65536];
static int redis;

static struct channel *channel_named(const char *name, size_t n) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < n; i++) hash = (hash ^ (unsigned char)name[i]) * 16777619u;
    struct channel **slot = &channels[hash & 65535];
    for (struct channel *c = *slot; c; c = c->next)
        if (!strncmp(c->name, name, n) && !c->name[n]) return c;
    struct channel *c = calloc(1, sizeof *c);
    memcpy(c->name, name, n);
    c->next = *slot;
    return *slot = c;
}

static void leave(struct watcher *w) {
    struct channel *c = w->channel;
    for (int i = 0; c && i < c->count; i++)
        if (c->watchers[i] == w) { c->watchers[i] = c->watchers[--c->count]; break; }
    close(w->fd);
    free(w->waiting.data);
    w->fd = -1;                                /* kept: epoll may still name it in this turn */
}

static void send_to(struct watcher *w, const char *data, size_t n) {
    ssize_t sent = 0;
    if (w->waiting.start == w->waiting.end) {
        sent = send(w->fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN) return;
        if (sent < 0) sent = 0;
        if ((size_t)sent == n) return;
        watch(epoll_fd, w->fd, EPOLLIN | EPOLLOUT, w, 1);
    }
    append(&w->waiting, data + sent, n - (size_t)sent);
}

static void welcome(struct watcher *w) {
    static const char headers[] =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\ntransfer-encoding: chunked\r\n\r\n"
        "c\r\nretry: 1000\n\r\n";
    send_to(w, headers, sizeof headers - 1);
}

static void on_request(struct watcher *w) {
    ssize_t n = recv(w->fd, w->request + w->request_bytes, sizeof w->request - 1 - w->request_bytes, 0);
    if (n <= 0) { if (n == 0 || errno != EAGAIN) leave(w); return; }
    w->request_bytes += (size_t)n;
    w->request[w->request_bytes] = 0;
    char id[64], name[96], command[160];
    if (w->channel || !strstr(w->request, "\r\n\r\n") || sscanf(w->request, "GET /tasks/%63[0-9a-f]/events", id) != 1) return;
    int length = sprintf(name, "headway:task:%s:live", id);
    struct channel *c = w->channel = channel_named(name, (size_t)length);
    c->watchers = grow(c->watchers, sizeof *c->watchers * (size_t)(c->count + 1));
    c->watchers[c->count++] = w;
    if (c->acknowledged) welcome(w);
    else if (c->count == 1) {
        int k = sprintf(command, "*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%s\r\n", length, name);
        if (send(redis, command, (size_t)k, 0) != k) die("subscribe");
    }
}

/* A message, or an acknowledgement: an array of three, of which the first two are strings. */
static size_t on_reply(char *data, size_t n) {
    char *p = data, *end = data + n, *part[3];
    size_t size[3];
    if (n < 4 || *p != '*') return 0;
    if (!(p = memchr(p, '\n', (size_t)(end - p)))) return 0;
    p++;
    for (int i = 0; i < 3; i++) {
        char *line = p;
        if (p >= end || !(p = memchr(p, '\n', (size_t)(end - p)))) return 0;
        p++;
        part[i] = p;
        size[i] = 0;
        if (*line == ':') continue;
        size[i] = strtoul(line + 1, NULL, 10);
        if ((size_t)(end - p) < size[i] + 2) return 0;
        p += size[i] + 2;
    }
    struct channel *c = channel_named(part[1], size[1]);
    if (size[0] == 9) {
        c->acknowledged = 1;
        for (int i = 0; i < c->count; i++) welcome(c->watchers[i]);
    } else {
        static char event[LINE_BYTES], chunk[LINE_BYTES + 32];
        char *space = memchr(part[2], ' ', size[2]);
        size_t id = (size_t)(space - part[2]), m = size[2] - id - 2;
        int k = sprintf(event, "id: %.*s\ndata: ", (int)id, part[2]);
        memcpy(event + k, space + 2, m);
        memcpy(event + k + m, "\n\n", 2);
        int h = sprintf(chunk, "%zx\r\n", (size_t)k + m + 2);
        memcpy(chunk + h, event, (size_t)k + m + 2);
        memcpy(chunk + h + k + m + 2, "\r\n", 2);
        for (int i = 0; i < c->count; i++) send_to(c->watchers[i], chunk, (size_t)h + (size_t)k + m + 4);
    }
    return (size_t)(p - data);
}

static void run_server(char **argv) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[0]))};
    inet_pton(AF_INET, "127.0.0.1", &at.sin_addr);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 4096) < 0) die("listen");
    redis = connected_to("127.0.0.1", atoi(argv[1]), 0);
    epoll_fd = epoll_create1(0);
    watch(epoll_fd, listener, EPOLLIN, &listener, 0);
    watch(epoll_fd, redis, EPOLLIN, &redis, 0);
    static char replies[READ_BYTES];
    size_t held = 0;
    for (;;) {
        struct epoll_event events[512];
        int n = epoll_wait(epoll_fd, events, 512, -1);
        for (int i = 0; i < n; i++) {
            void *owner = events[i].data.ptr;
            if (owner == &listener) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                    struct watcher *w = calloc(1, sizeof *w);
                    w->fd = fd;
                    watch(epoll_fd, fd, EPOLLIN, w, 0);
                }
            } else if (owner == &redis) {
                ssize_t got = recv(redis, replies + held, sizeof replies - held, 0);
                if (got <= 0) die("redis");
                size_t used = 0, step;
                held += (size_t)got;
                while ((step = on_reply(replies + used, held - used))) used += step;
                memmove(replies, replies + used, held -= used);
            } else {
                struct watcher *w = owner;
                if (w->fd >= 0 && events[i].events & EPOLLOUT && flush(&w->waiting, w->fd) == 1)
                    watch(epoll_fd, w->fd, EPOLLIN, w, 1);
                if (w->fd >= 0 && events[i].events & ~(uint32_t)EPOLLOUT) on_request(w);
            }
        }
    }
}

int main(int argc, char **argv) {
    allow_many_files();
    if (argc >= 7 && !strcmp(argv[1], "clients")) run_clients(argv + 2, argc - 2);
    else if (argc == 4 && !strcmp(argv[1], "server")) run_server(argv + 2);
    else { fprintf(stderr, "see the head of load.c\n"); return 2; }
    return 0;
}
