// Enters networks and leaves them, with settings of its own: 'network SIGNAL CAPTURE'; or 'network' with a node of others;
// or 'network bare' without standard input and output, as daemons are.
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <unisockets.h>

static void say(const char *what, int result) {
    printf("%s: %s\n", what, result == 0 ? "yes" : strerror(errno));
}

static void says(const char *what) {
    const char *status = unisockets_status();
    printf("%s is in the status: %s\n", what, status && strstr(status, what) ? "yes" : "no");
}

// What is another program's is used, and left to it.
static int share(void) {
    struct unisockets_config other = {.name = "other"};
    say("another name", unisockets_up(&other));
    say("as it is", unisockets_up(NULL));
    fflush(stdout);
    // Root's node lets a program that has become another user have sockets, and nothing else.
    if (geteuid() != 0 || fork() == 0) {
        if (geteuid() == 0 && setuid(65534) != 0)
            return 2;
        int fd = unisockets_socket(AF_INET, SOCK_DGRAM, 0);
        struct sockaddr_in any = {.sin_family = AF_INET};
        say("bind", unisockets_bind(fd, (struct sockaddr *)&any, sizeof any));
        if (geteuid() == 65534)
            say("capture", unisockets_capture("/tmp/unisockets-must-not-be"));
        else
            puts("capture: Permission denied");
        fflush(stdout);
        if (geteuid() == 65534)
            _exit(0);
    }
    wait(NULL);
    say("down", unisockets_down());
    printf("a node is left to others: %s\n", getenv("UNISOCKETS_NODE") ? "yes" : "no");
    return 0;
}

// The first socket starts a node, whose words go into a pipe that must not lie where they are written to.
static int bare(void) {
    struct sockaddr_in any = {.sin_family = AF_INET};
    close(0);
    close(1);
    int fd = unisockets_socket(AF_INET, SOCK_STREAM, 0);
    if (unisockets_bind(fd, (struct sockaddr *)&any, sizeof any) != 0) {
        fprintf(stderr, "bind: %s\n", unisockets_errmsg());
        return 1;
    }
    return unisockets_down() == 0 ? 0 : 1;
}

static int flag(int fd, int option) {
    int value = -1;
    socklen_t len = sizeof value;
    return unisockets_getsockopt(fd, SOL_SOCKET, option, &value, &len) ? -1 : value;
}

// The member's own address is no interface of the kernel's; and parts of one datagram would be several.
static void datagrams(const char *name) {
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_DGRAM, .ai_flags = AI_ADDRCONFIG}, *own = NULL;
    int code = unisockets_getaddrinfo(name, "9", &hints, &own);
    printf("its address: %s\n", code == 0 ? "yes" : gai_strerror(code));
    struct sockaddr_in to;
    memcpy(&to, own->ai_addr, sizeof to);
    unisockets_freeaddrinfo(own);
    int fd = unisockets_socket(AF_INET, SOCK_DGRAM, 0);
    say("groups from it", unisockets_setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &to.sin_addr, sizeof to.sin_addr));
    int other = unisockets_socket(AF_INET, SOCK_DGRAM, 0);
    say("a first part", (int)unisockets_sendto(other, "part", 4, MSG_MORE, (struct sockaddr *)&to, sizeof to));
    unisockets_close(other);
    say("a part", (int)unisockets_sendto(fd, "part", 4, MSG_MORE, (struct sockaddr *)&to, sizeof to));
    unisockets_close(fd);
}

int main(int argc, char **argv) {
    if (argc == 1)
        return share();
    if (argc == 2)
        return bare();
    if (argc != 3)
        return 2;
    printf("of the header's version: %s\n", strcmp(unisockets_version(), UNISOCKETS_VERSION) ? "no" : "yes");
    struct unisockets_config config = {.signal = argv[1], .name = "gamma"};
    say("gamma", unisockets_up(&config));
    says("\"gamma\"");
    char first[256], second[256];
    snprintf(first, sizeof first, "%s", getenv("UNISOCKETS_NODE"));
    say("again", unisockets_up(&config));
    say("as it is", unisockets_up(NULL));
    struct unisockets_config other = {.signal = argv[1], .name = "delta", .network = "elsewhere"};
    say("delta meanwhile", unisockets_up(&other));
    puts(unisockets_errmsg());
    struct unisockets_config secret = {.secret = "a secret that it has not"};
    say("a secret meanwhile", unisockets_up(&secret));
    say("capture", unisockets_capture(argv[2]));
    // What a child leaves is its parent's still.
    fflush(stdout);
    if (fork() == 0)
        _exit(unisockets_down() != 0);
    int status = -1;
    wait(&status);
    printf("a child has left: %s\n", status == 0 ? "yes" : "no");
    datagrams("gamma");
    int fd = unisockets_socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(7)};
    say("bind", unisockets_bind(fd, (struct sockaddr *)&any, sizeof any));
    say("listen", unisockets_listen(fd, 5));
    // What is open drains; the next node is another one.
    say("down", unisockets_down());
    say("delta", unisockets_up(&other));
    says("\"delta\"");
    says("\"elsewhere\"");
    snprintf(second, sizeof second, "%s", getenv("UNISOCKETS_NODE"));
    printf("the same node: %s\n", strcmp(first, second) ? "no" : "yes");
    // Each node counts its sockets from one; what was opened before is the first one's still.
    int own = unisockets_socket(AF_INET, SOCK_STREAM, 0), on = 1;
    say("bind", unisockets_bind(own, (struct sockaddr *)&any, sizeof any));
    say("an option of the other", unisockets_setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on));
    printf("keep-alive: %d and %d\n", flag(fd, SO_KEEPALIVE), flag(own, SO_KEEPALIVE));
    printf("listening: %d and %d\n", flag(fd, SO_ACCEPTCONN), flag(own, SO_ACCEPTCONN));
    close(own);
    close(fd);
    say("down", unisockets_down());
    printf("a node is left to others: %s\n", getenv("UNISOCKETS_NODE") ? "yes" : "no");
    say("down again", unisockets_down());
    struct unisockets_config bad = {.signal = "ftp://x", .name = "epsilon"};
    say("a bad server", unisockets_up(&bad));
    puts(*unisockets_errmsg() ? "and why" : "and nothing of why");
    return 0;
}
