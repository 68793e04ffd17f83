/* A script of socket calls: prints what each one says, and nothing that depends on where it runs. It is run with the
 * operating system's sockets and with ours, and has to print the same. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef UNISOCKETS_WITH_ALIAS
#include <unisockets.h>
#endif

static const char *section = "";
static int family, type;

/* What a call returned, or why it failed. */
static void say(const char *step, long value) {
    int error = errno;
    if (value < 0)
        printf("%s: %s = -1 %s\n", section, step, strerrorname_np(error));
    else
        printf("%s: %s = %ld\n", section, step, value);
    errno = 0;
}

/* What a call returned where the number itself means nothing. */
static int opened(const char *step, int fd) {
    say(step, fd < 0 ? fd : 0);
    return fd;
}

static int fresh(void) {
    int fd = socket(family, type, 0);
    if (fd < 0) {
        perror("socket");
        exit(1);
    }
    return fd;
}

/* An address of loopback. */
static socklen_t at(struct sockaddr_storage *address, int port) {
    memset(address, 0, sizeof *address);
    if (family == AF_INET) {
        struct sockaddr_in *four = (struct sockaddr_in *)address;
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
        four->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return sizeof *four;
    }
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)address;
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(port);
    six->sin6_addr = in6addr_loopback;
    return sizeof *six;
}

static int port_of(int fd) {
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &len) < 0) return -1;
    return ntohs(address.ss_family == AF_INET ? ((struct sockaddr_in *)&address)->sin_port
                                              : ((struct sockaddr_in6 *)&address)->sin6_port);
}

static int bound(void) {
    int fd = fresh();
    struct sockaddr_storage address;
    socklen_t len = at(&address, 0);
    if (bind(fd, (struct sockaddr *)&address, len) < 0) {
        perror("bind");
        exit(1);
    }
    return fd;
}

static int connected_to(int port) {
    int fd = fresh();
    struct sockaddr_storage address;
    socklen_t len = at(&address, port);
    if (connect(fd, (struct sockaddr *)&address, len) < 0) {
        perror("connect");
        exit(1);
    }
    return fd;
}

/* A call that does not fail says nothing. */
static void quiet(void) {
    int ends[2];
    if (pipe(ends) != 0)
        exit(1);
    int fd = fresh();
    errno = 4242;
    say("a quiet close", close(ends[0]));
    say("errno after a close", errno == 4242);
    errno = 4242;
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLOUT};
    say("a quiet epoll_ctl", epoll_ctl(epoll, EPOLL_CTL_ADD, ends[1], &event));
    say("errno after epoll_ctl", errno == 4242);
    say("a quiet close of a socket", close(fd));
    say("errno after that", errno == 4242);
    close(epoll);
    close(ends[1]);
}

/* Two ends of a connection. */
static void pair(int *left, int *right) {
    int listener = bound();
    listen(listener, 5);
    *left = connected_to(port_of(listener));
    *right = accept(listener, NULL, NULL);
    close(listener);
}

/* What poll says within a while. */
static void polled(const char *step, int fd, short wanted, int wait_ms) {
    struct pollfd one = {.fd = fd, .events = wanted};
    int ready = poll(&one, 1, wait_ms);
    /* The end of a descriptor of ours is told a moment before that nothing fills it any more: what lasts counts. */
    for (int turn = 0; turn < 1000 && (one.revents & POLLHUP) && (wanted & ~one.revents & POLLOUT); turn++) {
        usleep(1000);
        ready = poll(&one, 1, 0);
    }
    printf("%s: poll %s = %d%s%s%s%s%s%s\n", section, step, ready, one.revents & POLLIN ? " IN" : "",
           one.revents & POLLOUT ? " OUT" : "", one.revents & POLLRDHUP ? " RDHUP" : "",
           one.revents & POLLHUP ? " HUP" : "", one.revents & POLLERR ? " ERR" : "",
           one.revents & POLLNVAL ? " NVAL" : "");
    errno = 0;
}

static void readable(int fd) {
    struct pollfd one = {.fd = fd, .events = POLLIN};
    poll(&one, 1, 5000);
}

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    return getsockopt(fd, level, name, &value, &len) < 0 ? -1 : value;
}

static int set(int fd, int level, int name, int value) { return setsockopt(fd, level, name, &value, sizeof value); }

static void creation(void) {
    section = "creation";
    say("unknown family", socket(999, SOCK_STREAM, 0));
    say("unknown type", socket(AF_INET, 99, 0));
    say("unknown flag", socket(AF_INET, SOCK_STREAM | 0x100, 0));
    say("stream of UDP", socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
    say("datagrams of TCP", socket(AF_INET6, SOCK_DGRAM, IPPROTO_TCP));
    int fd = opened("stream of TCP", socket(AF_INET, SOCK_STREAM, IPPROTO_TCP));
    say("its flags", fcntl(fd, F_GETFL) & O_NONBLOCK);
    say("close", close(fd));
    say("close again", close(fd));
    fd = opened("with flags", socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_UDP));
    say("nonblocking", (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    say("close on exec", fcntl(fd, F_GETFD) & FD_CLOEXEC);
    say("SO_TYPE", option(fd, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM);
    say("SO_DOMAIN", option(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET6);
    say("SO_PROTOCOL", option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_UDP);
    say("SO_ACCEPTCONN", option(fd, SOL_SOCKET, SO_ACCEPTCONN));
    say("SO_ERROR", option(fd, SOL_SOCKET, SO_ERROR));
    close(fd);
}

static void wrong_descriptors(void) {
    section = "descriptors";
    struct sockaddr_storage address;
    socklen_t len = at(&address, 9);
    int file = open("/dev/null", O_RDWR), gone = fresh();
    close(gone);
    char byte = 0;
    int bad[] = {-1, gone, file};
    const char *names[] = {"none", "closed", "a file"};
    for (int each = 0; each < 3; each++) {
        section = names[each];
        int fd = bad[each];
        socklen_t size = sizeof address;
        say("bind", bind(fd, (struct sockaddr *)&address, len));
        say("connect", connect(fd, (struct sockaddr *)&address, len));
        say("listen", listen(fd, 1));
        say("accept", accept(fd, NULL, NULL));
        say("send", send(fd, &byte, 1, 0));
        say("recv", recv(fd, &byte, 1, 0));
        say("sendto", sendto(fd, &byte, 1, 0, (struct sockaddr *)&address, len));
        say("shutdown", shutdown(fd, SHUT_WR));
        say("getsockname", getsockname(fd, (struct sockaddr *)&address, &size));
        say("getpeername", getpeername(fd, (struct sockaddr *)&address, &size));
        say("getsockopt", option(fd, SOL_SOCKET, SO_ERROR));
        say("setsockopt", set(fd, SOL_SOCKET, SO_REUSEADDR, 1));
    }
    close(file);
}

/* Of a socket that has no address yet, or of one that has. */
static void options(int fd) {
    struct {
        const char *name;
        int level, option, value;
    } all[] = {
        {"SO_REUSEADDR", SOL_SOCKET, SO_REUSEADDR, 1},
        {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1},
        {"SO_BROADCAST", SOL_SOCKET, SO_BROADCAST, 1},
        {"SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, 1},
        {"SO_REUSEPORT", SOL_SOCKET, SO_REUSEPORT, 1},
        {"SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 3},
        {"SO_ACCEPTCONN", SOL_SOCKET, SO_ACCEPTCONN, 1},
        {"SO_TYPE", SOL_SOCKET, SO_TYPE, 1},
        {"SO_ERROR", SOL_SOCKET, SO_ERROR, 1},
        {"SO_TIMESTAMP", SOL_SOCKET, SO_TIMESTAMP, 1},
        {"SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3},
        {"an unknown one of sockets", SOL_SOCKET, 9999, 1},
        {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1},
        {"TCP_CORK", IPPROTO_TCP, TCP_CORK, 1},
        {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 50},
        {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 20},
        {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 4},
        {"TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 5000},
        {"TCP_KEEPIDLE of nothing", IPPROTO_TCP, TCP_KEEPIDLE, 0},
        {"TCP_KEEPCNT of too many", IPPROTO_TCP, TCP_KEEPCNT, 1000},
        {"TCP_USER_TIMEOUT below zero", IPPROTO_TCP, TCP_USER_TIMEOUT, -1},
        {"an unknown one of TCP", IPPROTO_TCP, 9999, 1},
        {"IP_TTL", IPPROTO_IP, IP_TTL, 33},
        {"IP_TTL of nothing", IPPROTO_IP, IP_TTL, 0},
        {"IP_TTL of too many", IPPROTO_IP, IP_TTL, 256},
        {"IP_TOS", IPPROTO_IP, IP_TOS, 0x10},
        {"IP_MULTICAST_TTL", IPPROTO_IP, IP_MULTICAST_TTL, 7},
        {"IP_MULTICAST_LOOP", IPPROTO_IP, IP_MULTICAST_LOOP, 0},
        {"IP_MULTICAST_IF", IPPROTO_IP, IP_MULTICAST_IF, 0},
        {"IP_MULTICAST_IF of nowhere", IPPROTO_IP, IP_MULTICAST_IF, 0x01020304},
        {"IPV6_MULTICAST_IF", IPPROTO_IPV6, IPV6_MULTICAST_IF, 1},
        {"IPV6_MULTICAST_IF of many", IPPROTO_IPV6, IPV6_MULTICAST_IF, 12345},
        {"IP_PKTINFO", IPPROTO_IP, IP_PKTINFO, 1},
        {"IP_RECVTTL", IPPROTO_IP, IP_RECVTTL, 1},
        {"an unknown one of IPv4", IPPROTO_IP, 9999, 1},
        {"IPV6_V6ONLY", IPPROTO_IPV6, IPV6_V6ONLY, 1},
        {"IPV6_UNICAST_HOPS", IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44},
        {"IPV6_UNICAST_HOPS of too many", IPPROTO_IPV6, IPV6_UNICAST_HOPS, 256},
        {"IPV6_MULTICAST_HOPS", IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 5},
        {"IPV6_RECVPKTINFO", IPPROTO_IPV6, IPV6_RECVPKTINFO, 1},
        {"an unknown one of IPv6", IPPROTO_IPV6, 9999, 1},
        {"an unknown level", 4242, 1, 1},
    };
    for (size_t each = 0; each < sizeof all / sizeof *all; each++) {
        char step[100];
        snprintf(step, sizeof step, "%s before", all[each].name);
        /* Defaults that a machine's administrator sets are left out, and what IPv4 and IPv6 have in common here. */
        int common = all[each].level == IPPROTO_IPV6 && family == AF_INET6 &&
                     (all[each].option == IPV6_UNICAST_HOPS || all[each].option == IPV6_MULTICAST_HOPS);
        if (!common && all[each].option != TCP_KEEPIDLE && all[each].option != TCP_KEEPINTVL && all[each].option != TCP_KEEPCNT)
            say(step, option(fd, all[each].level, all[each].option));
        snprintf(step, sizeof step, "%s set", all[each].name);
        say(step, set(fd, all[each].level, all[each].option, all[each].value));
        snprintf(step, sizeof step, "%s after", all[each].name);
        say(step, option(fd, all[each].level, all[each].option));
    }
    int value = 1;
    char wide[64] = {0};
    socklen_t len = 0;
    say("set with no length", setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &value, 0));
    say("set with a short length", setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, 2));
    say("set from nowhere", setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, NULL, 4));
    say("TCP_NODELAY from nowhere", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, NULL, 4));
    say("IP_TTL from nowhere", setsockopt(fd, IPPROTO_IP, IP_TTL, NULL, 4));
    say("IPV6_V6ONLY from nowhere", setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, NULL, 4));
    say("two bytes of TCP_NODELAY from nowhere", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, NULL, 2));
    say("an option of no level from nowhere", setsockopt(fd, 12345, 1, NULL, 4));
    say("get with no length", getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &len));
    len = sizeof wide;
    /* The kernel's own sockets answer as well, but tools that watch memory see what they are given. */
    if (port_of(fd) > 0) {
        len = 4;
        say("get into nowhere", getsockopt(fd, SOL_SOCKET, SO_TYPE, NULL, &len));
        say("SO_ERROR into nowhere", getsockopt(fd, SOL_SOCKET, SO_ERROR, NULL, &len));
        len = -1;
        say("get with a negative length", getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &len));
    }
    say("SO_KEEPALIVE of three bytes", setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, 3));
    say("TCP_NODELAY of one byte", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, 1));
    say("IP_TTL of one byte", setsockopt(fd, IPPROTO_IP, IP_TTL, "\7", 1));
    say("an error that is queued", recv(fd, wide, 1, MSG_ERRQUEUE));
    len = sizeof wide;
    say("get into much", getsockopt(fd, SOL_SOCKET, SO_TYPE, wide, &len));
    say("what was taken of it", len);
    len = 2;
    say("get into little", getsockopt(fd, SOL_SOCKET, SO_TYPE, wide, &len));
    say("what was taken of that", len);
    struct linger linger = {.l_onoff = 1, .l_linger = 7};
    say("SO_LINGER", setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    say("SO_LINGER, short", setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, 4));
    memset(&linger, 0, sizeof linger);
    len = sizeof linger;
    say("SO_LINGER, got", getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &len));
    say("its time", linger.l_linger);
    struct timeval time = {.tv_sec = 1, .tv_usec = 500000};
    say("SO_RCVTIMEO", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time));
    say("SO_RCVTIMEO, short", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, 8));
    time.tv_usec = 1000000;
    say("SO_RCVTIMEO of a second in microseconds", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time));
    time.tv_sec = time.tv_usec = 0;
    len = sizeof time;
    say("SO_RCVTIMEO, got", getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, &len));
    say("its seconds", time.tv_sec);
    say("its microseconds", time.tv_usec);
    close(fd);
}

static void names(void) {
    struct sockaddr_storage address, other;
    socklen_t len = at(&address, 0), size;
    int fd = fresh();
    say("bind with a short length", bind(fd, (struct sockaddr *)&address, 4));
    say("bind with a length below zero", bind(fd, (struct sockaddr *)&address, -1));
    address.ss_family = 77;
    say("bind to a family of nobody", bind(fd, (struct sockaddr *)&address, len));
    size = sizeof other;
    say("getsockname before", getsockname(fd, (struct sockaddr *)&other, &size));
    say("its length", size);
    say("its family", other.ss_family == family);
    say("its port", port_of(fd));
    size = sizeof other;
    say("getpeername before", getpeername(fd, (struct sockaddr *)&other, &size));
    len = at(&address, 0);
    say("bind", bind(fd, (struct sockaddr *)&address, len));
    say("it has a port", port_of(fd) > 0);
    say("bind again", bind(fd, (struct sockaddr *)&address, len));
    size = 4;
    say("getsockname into little", getsockname(fd, (struct sockaddr *)&other, &size));
    say("the length that it has", size);
    size = -1;
    say("getsockname with a length below zero", getsockname(fd, (struct sockaddr *)&other, &size));
    say("getsockname into nothing", getsockname(fd, NULL, &size));
    int second = fresh();
    len = at(&address, port_of(fd));
    say("bind to the same port", bind(second, (struct sockaddr *)&address, len));
    say("SO_REUSEADDR", set(second, SOL_SOCKET, SO_REUSEADDR, 1));
    say("bind to the same port, one may share", bind(second, (struct sockaddr *)&address, len));
    close(second);
    close(fd);
    int first = fresh();
    second = fresh();
    set(first, SOL_SOCKET, SO_REUSEADDR, 1);
    set(second, SOL_SOCKET, SO_REUSEADDR, 1);
    len = at(&address, 0);
    bind(first, (struct sockaddr *)&address, len);
    len = at(&address, port_of(first));
    say("bind to the same port, both may share", bind(second, (struct sockaddr *)&address, len));
    close(first);
    close(second);
    first = fresh();
    second = fresh();
    set(first, SOL_SOCKET, SO_REUSEPORT, 1);
    set(second, SOL_SOCKET, SO_REUSEPORT, 1);
    len = at(&address, 0);
    bind(first, (struct sockaddr *)&address, len);
    len = at(&address, port_of(first));
    say("bind to the same port with SO_REUSEPORT", bind(second, (struct sockaddr *)&address, len));
    close(first);
    close(second);
    if (family == AF_INET6) {
        fd = fresh();
        set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
        struct sockaddr_in6 mapped = {.sin6_family = AF_INET6};
        inet_pton(AF_INET6, "::ffff:127.0.0.1", &mapped.sin6_addr);
        say("bind IPv6 alone to IPv4", bind(fd, (struct sockaddr *)&mapped, sizeof mapped));
        close(fd);
        fd = fresh();
        say("bind both to IPv4", bind(fd, (struct sockaddr *)&mapped, sizeof mapped));
        say("IPV6_V6ONLY after bind", set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1));
        close(fd);
    }
}

static void stream_states(void) {
    struct sockaddr_storage address;
    socklen_t len;
    char bytes[64];
    int fd = fresh();
    say("accept without listen", accept(fd, NULL, NULL));
    say("send without connection", send(fd, "x", 1, MSG_NOSIGNAL));
    say("recv without connection", recv(fd, bytes, 1, 0));
    polled("without connection", fd, POLLIN | POLLOUT, 0);
    int shut = fresh();
    say("shutdown without connection", shutdown(shut, SHUT_RDWR));
    close(shut);
    say("listen without bind", listen(fd, 3));
    say("it has a port", port_of(fd) > 0);
    say("SO_ACCEPTCONN", option(fd, SOL_SOCKET, SO_ACCEPTCONN));
    say("listen again", listen(fd, 7));
    say("send of a listener", send(fd, "x", 1, MSG_NOSIGNAL));
    say("recv of a listener", recv(fd, bytes, 1, 0));
    len = at(&address, port_of(fd));
    say("connect of a listener", connect(fd, (struct sockaddr *)&address, len));
    say("nonblocking", fcntl(fd, F_SETFL, O_NONBLOCK));
    say("accept of nobody", accept(fd, NULL, NULL));
    polled("a listener", fd, POLLIN | POLLOUT, 0);
    int client = connected_to(port_of(fd));
    polled("a listener with a client", fd, POLLIN, 5000);
    say("connect again", connect(client, (struct sockaddr *)&address, len));
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer;
    int server = opened("accept4", accept4(fd, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK));
    say("the length of its address", size);
    say("its port is the client's", ntohs(((struct sockaddr_in *)&peer)->sin_port) == port_of(client));
    say("it is nonblocking", (fcntl(server, F_GETFL) & O_NONBLOCK) != 0);
    say("accept4 with an unknown flag", accept4(fd, NULL, NULL, 0x1234));
    say("recv of nothing yet", recv(server, bytes, sizeof bytes, 0));
    polled("a connection", server, POLLIN | POLLOUT, 0);
    say("close of the listener", close(fd));
    say("send after it", send(client, "hello", 5, 0));
    readable(server);
    int waiting = -1;
    say("errors of a connection", recv(server, bytes, 1, MSG_ERRQUEUE));
    say("FIONREAD", ioctl(server, FIONREAD, &waiting));
    say("what it says", waiting);
    say("peek", recv(server, bytes, 3, MSG_PEEK));
    say("peek more", recv(server, bytes, sizeof bytes, MSG_PEEK));
    say("recv of some", recv(server, bytes, 2, 0));
    say("recv into nothing", recv(server, bytes, 0, 0));
    say("recv of the rest, thrown away", recv(server, bytes, sizeof bytes, MSG_TRUNC));
    say("recv from nowhere", recv(server, NULL, 0, MSG_DONTWAIT));
    say("send of nothing", send(client, "", 0, 0));
    say("shutdown of an unknown way", shutdown(client, 9));
    say("shutdown of writing", shutdown(client, SHUT_WR));
    say("shutdown again", shutdown(client, SHUT_WR));
    say("send after shutdown", send(client, "x", 1, MSG_NOSIGNAL));
    polled("the end", server, POLLIN | POLLOUT | POLLRDHUP, 5000);
    say("recv of the end", recv(server, bytes, sizeof bytes, 0));
    say("recv of it again", recv(server, bytes, sizeof bytes, 0));
    say("send the other way", send(server, "back", 4, 0));
    say("recv all of it", recv(client, bytes, 4, MSG_WAITALL));
    say("close of one end", close(server));
    polled("both ends", client, POLLIN | POLLRDHUP, 5000);
    say("recv of the other end", recv(client, bytes, sizeof bytes, 0));
    polled("when all is over", client, POLLIN | POLLOUT | POLLRDHUP, 1000);
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    say("SO_LINGER then", setsockopt(client, SOL_SOCKET, SO_LINGER, &now, sizeof now));
    int on = 1;
    say("TCP_NODELAY then", setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    say("an unknown option then", setsockopt(client, SOL_SOCKET, 9999, &on, sizeof on));
    say("SO_DOMAIN then", option(client, SOL_SOCKET, SO_DOMAIN) == family);
    say("SO_TYPE then", option(client, SOL_SOCKET, SO_TYPE));
    say("SO_ERROR then", option(client, SOL_SOCKET, SO_ERROR));
    size = sizeof peer;
    close(client);
    int left, right;
    pair(&left, &right);
    setsockopt(left, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    say("close with a reset", close(left));
    polled("a reset", right, POLLIN | POLLRDHUP, 5000);
    say("SO_ERROR after a reset", option(right, SOL_SOCKET, SO_ERROR));
    say("SO_ERROR again", option(right, SOL_SOCKET, SO_ERROR));
    say("recv after a reset", recv(right, bytes, 1, 0));
    say("send after a reset", send(right, "x", 1, MSG_NOSIGNAL));
    size = sizeof peer;
    say("getpeername after a reset", getpeername(right, (struct sockaddr *)&peer, &size));
    close(right);
    pair(&left, &right);
    setsockopt(left, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(left);
    readable(right);
    say("recv of a reset", recv(right, bytes, 1, 0));
    say("recv after that", recv(right, bytes, 1, 0));
    close(right);
    pair(&left, &right);
    say("shutdown of reading", shutdown(left, SHUT_RD));
    say("recv after it", recv(left, bytes, 1, 0));
    polled("after it", left, POLLIN | POLLOUT | POLLRDHUP, 0);
    close(left);
    close(right);
    int refused = fresh(), closed = bound(), port = port_of(closed);
    close(closed);
    len = at(&address, port);
    say("connect to nobody", connect(refused, (struct sockaddr *)&address, len));
    say("SO_ERROR after it", option(refused, SOL_SOCKET, SO_ERROR));
    close(refused);
    refused = fresh();
    fcntl(refused, F_SETFL, O_NONBLOCK);
    int begun = connect(refused, (struct sockaddr *)&address, len);
    printf("%s: connect without waiting = %s\n", section, begun < 0 && (errno == EINPROGRESS || errno == ECONNREFUSED) ? "begun" : "odd");
    polled("a refusal", refused, POLLOUT, 5000);
    close(refused);
    fd = fresh();
    say("connect with a short length", connect(fd, (struct sockaddr *)&address, 3));
    address.ss_family = 77;
    say("connect to a family of nobody", connect(fd, (struct sockaddr *)&address, len));
    close(fd);
}

static void timeouts(void) {
    char byte;
    int left = -1, right = -1;
    if (type == SOCK_STREAM)
        pair(&left, &right);
    else
        left = bound();
    struct timeval short_time = {.tv_usec = 30000};
    setsockopt(left, SOL_SOCKET, SO_RCVTIMEO, &short_time, sizeof short_time);
    say("recv until a timeout", recv(left, &byte, 1, 0));
    say("recv without waiting", recv(left, &byte, 1, MSG_DONTWAIT));
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(left, &reading);
    struct timeval none = {0};
    say("select", select(left + 1, &reading, NULL, NULL, &none));
    int on = 1;
    say("FIONBIO", ioctl(left, FIONBIO, &on));
    say("recv after it", recv(left, &byte, 1, 0));
    int copy = dup(left);
    say("close of one of two names", close(left));
    say("recv with the other", recv(copy, &byte, 1, 0));
    close(copy);
    if (right >= 0) close(right);
}

/* Two sockets on one port: what comes is shared between them, and nothing is lost. */
static void shared_ports(void) {
    enum { CLIENTS = 40 };
    int servers[2], clients[CLIENTS], port = 0, got[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        struct sockaddr_storage address;
        socklen_t len = at(&address, port);
        servers[i] = fresh();
        if (i == 1) say("bind without sharing", bind(servers[i], (struct sockaddr *)&address, len));
        say("SO_REUSEPORT before bind", set(servers[i], SOL_SOCKET, SO_REUSEPORT, 1));
        say("bind to share", bind(servers[i], (struct sockaddr *)&address, len));
        port = port_of(servers[i]);
        if (type == SOCK_STREAM) say("listen to share", listen(servers[i], CLIENTS));
        fcntl(servers[i], F_SETFL, O_NONBLOCK);
    }
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = connected_to(port);
        if (type == SOCK_DGRAM && send(clients[i], "x", 1, 0) != 1) say("send to share", -1);
    }
    for (int tries = 0; tries < 500 && got[0] + got[1] < CLIENTS; tries++) {
        struct pollfd both[2] = {{servers[0], POLLIN, 0}, {servers[1], POLLIN, 0}};
        char byte;
        poll(both, 2, 20);
        for (int i = 0; i < 2; i++) {
            int came = type == SOCK_STREAM ? accept(servers[i], NULL, NULL) : (int)recv(servers[i], &byte, 1, 0);
            if (came < 0) continue;
            got[i]++;
            if (type == SOCK_STREAM) close(came);
        }
    }
    say("all came", got[0] + got[1]);
    say("to both", got[0] > 0 && got[1] > 0);
    for (int i = 0; i < CLIENTS; i++) close(clients[i]);
    close(servers[0]);
    close(servers[1]);
}

static void datagrams(void) {
    struct sockaddr_storage address, from;
    socklen_t len, size;
    char bytes[70000] = {0};
    int fd = fresh();
    say("listen", listen(fd, 1));
    say("accept", accept(fd, NULL, NULL));
    say("send to nobody", send(fd, "x", 1, 0));
    polled("alone", fd, POLLIN | POLLOUT, 0);
    int server = bound(), client = fresh();
    len = at(&address, port_of(server));
    say("sendto", sendto(client, "one", 3, 0, (struct sockaddr *)&address, len));
    say("it has a port", port_of(client) > 0);
    say("sendto of nothing", sendto(client, "", 0, 0, (struct sockaddr *)&address, len));
    say("sendto of too much", sendto(client, bytes, sizeof bytes, 0, (struct sockaddr *)&address, len));
    say("sendto with a short address", sendto(client, "x", 1, 0, (struct sockaddr *)&address, 5));
    struct sockaddr_storage strange = address;
    strange.ss_family = 77;
    say("sendto of another family", sendto(client, "x", 1, 0, (struct sockaddr *)&strange, len));
    say("sendto of another family, short", sendto(client, "x", 1, 0, (struct sockaddr *)&strange, 5));
    readable(server);
    int waiting = -1;
    say("FIONREAD", ioctl(server, FIONREAD, &waiting));
    say("what it says", waiting);
    size = sizeof from;
    say("recvfrom", recvfrom(server, bytes, sizeof bytes, 0, (struct sockaddr *)&from, &size));
    say("the length of the source", size);
    say("it is the client", ntohs(((struct sockaddr_in *)&from)->sin_port) == port_of(client));
    readable(server);
    say("recv of nothing", recv(server, bytes, sizeof bytes, 0));
    say("sendto of five", sendto(client, "12345", 5, 0, (struct sockaddr *)&address, len));
    readable(server);
    say("peek at two", recv(server, bytes, 2, MSG_PEEK));
    say("peek at the length", recv(server, bytes, 2, MSG_PEEK | MSG_TRUNC));
    struct iovec part = {.iov_base = bytes, .iov_len = 2};
    struct msghdr message = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &part, .msg_iovlen = 1};
    say("recvmsg of two", recvmsg(server, &message, 0));
    say("it was cut", (message.msg_flags & MSG_TRUNC) != 0);
    say("the rest is gone", recv(server, bytes, 9, MSG_DONTWAIT));
    say("connect", connect(client, (struct sockaddr *)&address, len));
    size = sizeof from;
    say("getpeername", getpeername(client, (struct sockaddr *)&from, &size));
    say("send", send(client, "two", 3, 0));
    say("sendto elsewhere", sendto(client, "three", 5, 0, (struct sockaddr *)&address, len));
    readable(server);
    say("recv", recv(server, bytes, sizeof bytes, 0));
    readable(server);
    say("recv", recv(server, bytes, sizeof bytes, 0));
    struct iovec parts[2] = {{.iov_base = "ab", .iov_len = 2}, {.iov_base = "cde", .iov_len = 3}};
    struct msghdr gathered = {.msg_iov = parts, .msg_iovlen = 2};
    say("sendmsg of two parts", sendmsg(client, &gathered, 0));
    readable(server);
    say("recv of both", recv(server, bytes, sizeof bytes, 0));
    struct mmsghdr many[2] = {{.msg_hdr = gathered}, {.msg_hdr = gathered}};
    say("sendmmsg", sendmmsg(client, many, 2, 0));
    say("their lengths", many[0].msg_len + many[1].msg_len);
    readable(server);
    usleep(20000);
    struct iovec into[2] = {{.iov_base = bytes, .iov_len = 10}, {.iov_base = bytes + 10, .iov_len = 10}};
    struct mmsghdr got[2] = {{.msg_hdr = {.msg_iov = &into[0], .msg_iovlen = 1}},
                             {.msg_hdr = {.msg_iov = &into[1], .msg_iovlen = 1}}};
    say("recvmmsg", recvmmsg(server, got, 2, MSG_DONTWAIT, NULL));
    struct timespec times[] = {{0, -1}, {-1, 0}, {0, 1000000000}};
    for (int each = 0; each < 3; each++)
        say("recvmmsg until no time", recvmmsg(server, got, 2, 0, &times[each]));
    close(server);
    say("send to what is closed", send(client, "x", 1, 0));
    polled("a refusal", client, POLLIN, 5000);
    say("SO_ERROR", option(client, SOL_SOCKET, SO_ERROR));
    say("SO_ERROR again", option(client, SOL_SOCKET, SO_ERROR));
    send(client, "x", 1, 0);
    readable(client);
    say("recv of a refusal", recv(client, bytes, 1, MSG_DONTWAIT));
    say("recv after it", recv(client, bytes, 1, MSG_DONTWAIT));
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    say("connect to nobody", connect(client, &nobody, sizeof nobody));
    say("getpeername after it", getpeername(client, (struct sockaddr *)&from, &size));
    say("send after it", send(client, "x", 1, 0));
    say("shutdown without connection", shutdown(client, SHUT_RDWR));
    close(client);
    close(fd);
}

/* Messages of connections: no source, bytes thrown away, data with the connect, and what is none. */
static void stream_messages(void) {
    char bytes[8];
    struct iovec part = {.iov_base = bytes, .iov_len = sizeof bytes};
    struct sockaddr_storage address, from;
    struct msghdr message = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &part, .msg_iovlen = 1};
    socklen_t len, size = sizeof from;
    int listener = bound(), left, right;
    listen(listener, 5);
    say("recvmsg of a listener", recvmsg(listener, &message, 0));
    pair(&left, &right);
    send(left, "123456", 6, 0);
    readable(right);
    say("thrown away without a place", recv(right, NULL, 3, MSG_TRUNC));
    say("recvfrom", recvfrom(right, bytes, 2, 0, (struct sockaddr *)&from, &size));
    say("the length of its source", size);
    say("the byte", bytes[0]);
    message.msg_namelen = sizeof from;
    say("recvmsg", recvmsg(right, &message, 0));
    say("the length of that source", message.msg_namelen);
    close(left);
    close(right);
    int client = fresh();
    len = at(&address, port_of(listener));
    say("data with the connect", sendto(client, "early", 5, MSG_FASTOPEN, (struct sockaddr *)&address, len));
    int server = accept(listener, NULL, NULL);
    say("it comes", recv(server, bytes, 5, MSG_WAITALL));
    say("again", sendto(client, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&address, len));
    close(client);
    close(server);
    close(listener);
}

/* An epoll goes on watching a socket whatever becomes of it. */
static void watched(void) {
    struct epoll_event event = {.events = EPOLLOUT, .data.u64 = 77}, seen;
    struct sockaddr_storage address, own;
    int listener = bound();
    listen(listener, 5);
    socklen_t len = at(&address, port_of(listener)), own_len = at(&own, 0);
    for (int late = 0; late < 2; late++) {
        int fd = fresh(), epoll = epoll_create1(0);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        if (!late) epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        bind(fd, (struct sockaddr *)&own, own_len);
        if (late) epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        say("connect of a bound one", connect(fd, (struct sockaddr *)&address, len));
        memset(&seen, 0, sizeof seen);
        int ready = 0;
        for (int turn = 0; turn < 500 && option(fd, SOL_SOCKET, SO_ERROR) == 0 && !(seen.events & EPOLLOUT); turn++)
            ready = epoll_wait(epoll, &seen, 1, 10);
        say("its epoll tells", ready == 1 && seen.data.u64 == 77 && (seen.events & EPOLLOUT) != 0);
        say("it is watched", epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event));
        close(fd);
        close(epoll);
    }
    int nobody = bound();
    struct sockaddr_storage refused;
    socklen_t refused_len = at(&refused, port_of(nobody));
    int fd = fresh(), epoll = epoll_create1(0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    connect(fd, (struct sockaddr *)&refused, refused_len);
    int error = 0;
    for (int turn = 0; turn < 500 && error == 0; turn++) {
        epoll_wait(epoll, &seen, 1, 10);
        error = option(fd, SOL_SOCKET, SO_ERROR);
    }
    say("a refused one", error == ECONNREFUSED);
    /* Linux says once more that it has failed (ECONNABORTED) where SO_ERROR was read. */
    if (connect(fd, (struct sockaddr *)&address, len) < 0 && errno == ECONNABORTED)
        connect(fd, (struct sockaddr *)&address, len);
    memset(&seen, 0, sizeof seen);
    for (int turn = 0; turn < 500 && !(seen.events & EPOLLOUT && !(seen.events & EPOLLHUP)); turn++)
        epoll_wait(epoll, &seen, 1, 10);
    say("its epoll tells", seen.data.u64 == 77 && (seen.events & EPOLLOUT) != 0);
    close(fd);
    close(epoll);
    close(nobody);
    close(listener);
}

/* What is not about connections that wait, of sockets that could have some; and what accepted ones have from them. */
static void listener_edges(void) {
    struct sockaddr_storage address;
    struct timeval second = {.tv_sec = 1}, kept = {0};
    socklen_t len = sizeof kept;
    int idle = bound();
    fcntl(idle, F_SETFL, O_NONBLOCK);
    say("accept where nobody listens", accept(idle, NULL, NULL));
    close(idle);
    int owned = fresh();
    fcntl(owned, F_SETOWN, getpid());
    bind(owned, (struct sockaddr *)&address, at(&address, 0));
    say("who is told stays", fcntl(owned, F_GETOWN) == getpid());
    close(owned);
    int listener = bound(), port = port_of(listener);
    setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    listen(listener, 4);
    say("shutdown writing of a listener", shutdown(listener, SHUT_WR));
    int client = connected_to(port), server = accept(listener, NULL, NULL);
    say("and accept", server >= 0);
    say("of the new one a timeout", getsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &kept, &len));
    say("is the listener's", kept.tv_sec);
    say("shutdown reading of a listener", shutdown(listener, SHUT_RD));
    say("and accept", accept(listener, NULL, NULL));
    int refused = -1;
    for (int turn = 0; turn < 500 && refused != ECONNREFUSED; turn++) {
        int late = fresh();
        errno = 0;
        connect(late, (struct sockaddr *)&address, at(&address, port));
        refused = errno;
        close(late);
        usleep(10000);
    }
    say("and later ones are refused", refused == ECONNREFUSED);
    errno = 0;
    close(client);
    close(server);
    close(listener);
}

/* An epoll that was closed asks for nothing any more, though another one has its number. */
static void closed_epoll(void) {
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLOUT, .data.u64 = 88}, seen;
    struct sockaddr_storage address;
    int listener = bound(), fd = fresh(), epoll = epoll_create1(0);
    listen(listener, 4);
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted);
    close(epoll);
    int other = epoll_create1(0);
    say("the number is used again", other == epoll);
    say("connect", connect(fd, (struct sockaddr *)&address, at(&address, port_of(listener))));
    say("nobody asked the other epoll", epoll_wait(other, &seen, 1, 100));
    close(other);
    close(fd);
    close(listener);
}

static pthread_barrier_t both;

static void *closing(void *fd) {
    pthread_barrier_wait(&both);
    return close(*(int *)fd) == 0 ? fd : NULL;
}

/* One of them closes it, the other one is told that it is none any more. */
static void closed_by_two_threads(void) {
    long closed = 0;
    pthread_barrier_init(&both, NULL, 2);
    for (int turn = 0; turn < 100; turn++) {
        int fd = bound();
        pthread_t threads[2];
        for (int each = 0; each < 2; each++) pthread_create(&threads[each], NULL, closing, &fd);
        for (int each = 0; each < 2; each++) {
            void *result;
            pthread_join(threads[each], &result);
            closed += result != NULL;
        }
    }
    pthread_barrier_destroy(&both);
    errno = 0;
    say("closed by two threads at once", closed);
}

/* The parent sends the first half, a child the second, another one has received before the fork what it goes on with. */
static void forked_in_mid_transfer(void) {
    enum { PART = 1000, PARTS = 4000 };
    static char bytes[PART];
    int left, right, status = -1;
    pair(&left, &right);
    fflush(stdout);
    pid_t reader = fork();
    if (reader == 0) {
        close(left);
        for (long place = 0;; place++) {
            unsigned char byte;
            ssize_t len = recv(right, &byte, 1, 0);
            if (len != 1 || byte != (unsigned char)(place / PART)) _exit(len == 0 && place == (long)PART * PARTS ? 0 : 1);
            static char rest[PART - 1];
            if (recv(right, rest, sizeof rest, MSG_WAITALL) != (ssize_t)sizeof rest) _exit(2);
            for (size_t each = 0; each < sizeof rest; each++)
                if ((unsigned char)rest[each] != byte) _exit(3);
            place += PART - 1;
        }
    }
    close(right);
    for (int part = 0; part < PARTS; part++) {
        if (part == PARTS / 2 && fork() != 0) {
            close(left);
            break;
        }
        memset(bytes, part, sizeof bytes);
        for (size_t sent = 0; sent < sizeof bytes;) sent += send(left, bytes + sent, sizeof bytes - sent, 0);
        if (part == PARTS - 1) _exit(0);
    }
    waitpid(reader, &status, 0);
    while (wait(NULL) > 0) {
    }
    errno = 0;
    say("forked in the middle of a transfer", status);
}

/* Sends until nothing more is taken for a while. */
static void fill(int fd) {
    static char bytes[65536];
    struct pollfd one = {.fd = fd, .events = POLLOUT};
    fcntl(fd, F_SETFL, O_NONBLOCK);
    while (poll(&one, 1, 300) > 0)
        while (send(fd, bytes, sizeof bytes, 0) > 0) {
        }
    errno = 0;
}

/* Both ends write, and neither reads: the reset must be told to whoever waits for room. */
static void full_and_reset(void) {
    int left, right;
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    pair(&left, &right);
    fill(left);
    fill(right);
    polled("a full one", right, POLLOUT, 0);
    setsockopt(left, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(left);
    struct pollfd one = {.fd = right, .events = POLLOUT};
    say("after a reset there is room", poll(&one, 1, 5000) == 1 && (one.revents & (POLLOUT | POLLERR | POLLHUP)) != 0);
    say("and no write is taken", send(right, "x", 1, MSG_NOSIGNAL) < 0);
    close(right);
}

/* Where a datagram was sent to, for whoever does not ask where it came from; and messages without a destination. */
static void datagram_messages(void) {
    static char bytes[70000];
    struct iovec part = {.iov_base = bytes, .iov_len = 5};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    struct sockaddr_storage address;
    int server = bound(), client = fresh();
    socklen_t len = at(&address, port_of(server));
    say("sendmsg to nobody", sendmsg(bound(), &message, 0));
    set(server, family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6, family == AF_INET ? IP_PKTINFO : IPV6_RECVPKTINFO, 1);
    sendto(client, "hello", 5, 0, (struct sockaddr *)&address, len);
    readable(server);
    _Alignas(struct cmsghdr) char control[128];
    message.msg_control = control, message.msg_controllen = sizeof control;
    say("recvmsg without a place for the source", recvmsg(server, &message, 0));
    struct cmsghdr *first = CMSG_FIRSTHDR(&message);
    say("the destination is told", first && first->cmsg_type == (family == AF_INET ? IP_PKTINFO : IPV6_PKTINFO));
    connect(client, (struct sockaddr *)&address, len);
    struct msghdr plain = {.msg_iov = &part, .msg_iovlen = 1};
    part.iov_len = sizeof bytes;
    say("sendmsg of too much", sendmsg(client, &plain, 0));
    close(client);
    close(server);
}

static void resolver(void) {
    section = "resolver";
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *found = NULL;
    const char *hosts[] = {"127.0.0.1", "::1", "1.2.3", "no.number", "256.1.1.1", ""};
    for (size_t each = 0; each < sizeof hosts / sizeof *hosts; each++) {
        int code = getaddrinfo(hosts[each], "80", &hints, &found);
        printf("resolver: numeric '%s' = %s\n", hosts[each], code ? gai_strerror(code) : "found");
        if (!code) freeaddrinfo(found);
    }
    printf("resolver: a service that is none = %s\n", gai_strerror(getaddrinfo("127.0.0.1", "x y", &hints, &found)));
    printf("resolver: nothing at all = %s\n", gai_strerror(getaddrinfo(NULL, NULL, &hints, &found)));
    hints.ai_family = 77;
    printf("resolver: a family of nobody = %s\n", gai_strerror(getaddrinfo("127.0.0.1", "80", &hints, &found)));
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(80), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char host[64], service[16];
    int code = getnameinfo((struct sockaddr *)&four, sizeof four, host, sizeof host, service, sizeof service,
                           NI_NUMERICHOST | NI_NUMERICSERV);
    printf("resolver: getnameinfo = %s %s %s\n", code ? gai_strerror(code) : "found", host, service);
    printf("resolver: into little = %s\n",
           gai_strerror(getnameinfo((struct sockaddr *)&four, sizeof four, host, 3, NULL, 0, NI_NUMERICHOST)));
    printf("resolver: with a short length = %s\n",
           gai_strerror(getnameinfo((struct sockaddr *)&four, 3, host, sizeof host, NULL, 0, NI_NUMERICHOST)));
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    alarm(60);
    creation();
    int families[] = {AF_INET, AF_INET6}, types[] = {SOCK_STREAM, SOCK_DGRAM};
    const char *labels[2][2] = {{"TCP over IPv4", "UDP over IPv4"}, {"TCP over IPv6", "UDP over IPv6"}};
    family = AF_INET, type = SOCK_STREAM;
    wrong_descriptors();
    for (int f = 0; f < 2; f++)
        for (int t = 0; t < 2; t++) {
            family = families[f], type = types[t];
            section = labels[f][t];
            options(fresh());
            options(bound());
            names();
            if (type == SOCK_STREAM) {
                stream_states();
                stream_messages();
                watched();
                full_and_reset();
                listener_edges();
                closed_epoll();
                closed_by_two_threads();
                forked_in_mid_transfer();
            } else {
                datagrams();
                datagram_messages();
            }
            shared_ports();
            quiet();
            timeouts();
        }
    resolver();
    return 0;
}
