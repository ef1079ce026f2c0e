/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the module share.
 *
 * main.c    registration: the protocols, the netlink family
 * socket.c  the life of a socket: create, bind, connect, release
 * listen.c  listeners, and connections on their way to accept
 * data.c    send, receive, poll, shutdown, and records of kTLS that are no data
 * option.c  getsockopt and setsockopt, and the files that options name
 * event.c   events on their way to the daemon, and its answers
 * netlink.c what the daemon asks for
 */
#ifndef SSA_H
#define SSA_H

#include <linux/completion.h>
#include <linux/cred.h>
#include <linux/net.h>
#include <linux/refcount.h>
#include <linux/xarray.h>
#include <net/genetlink.h>
#include <net/inet_common.h>
#include <net/inet_sock.h>
#include <net/ipv6.h>
#include <net/sock.h>

#include "compat.h"
#include "in_tls.h"
#include "ssa_netlink.h"

enum ssa_state {
	SSA_NEW,
	SSA_CONNECTING,
	SSA_ESTABLISHED,
	SSA_LISTEN,
	SSA_DEAD,	/* a listener whose daemon is gone, or that was shut down */
	SSA_CLOSED,
};

/* How many addresses of a name may be tried at a time (happy eyeballs). */
#define SSA_CANDIDATES	16

/* What one user may have; the daemon has limits of its own, for all. */
struct ssa_user {
	struct hlist_node node;
	kuid_t uid;
	unsigned int refs;	/* under ssa_user_lock */
	atomic_t sockets;
	atomic_t events;
};

struct ssa_sock {
	struct inet_sock inet;		/* first, always */
	u64 id;
	unsigned int session;		/* the daemon that knows it */
	enum ssa_state state;		/* written under lock_sock(), read with acquire */
	int refused;			/* the daemon's answer to the socket itself */
	bool ktls;
	bool eof;			/* the daemon vouches for the end of stream */
	bool relaying;
	bool shut;			/* the program has ended its own receiving */
	bool reset;			/* the inner socket has been in an attempt */
	struct ssa_user *user;
	const struct cred *cred;	/* of who connects to a name */
	struct file *inner_file;	/* keeps inner alive */
	struct file *spare_file;	/* the inner socket while an upgraded one is in its place */
	struct file *data_file;		/* keeps data alive */
	struct socket *inner;		/* the real TCP socket */
	struct socket *data;		/* where plaintext goes: inner (kTLS), or our end of a pair */
	struct file *candidates[SSA_CANDIDATES];
	unsigned int candidate_count;
	struct socket_wq *wq;		/* of the program's socket */
	wait_queue_entry_t wake;	/* sits on the queue of data, wakes wq */
	struct list_head queue;		/* of a listener: what waits for accept */
	struct list_head link;		/* in a listener's queue */
	unsigned int queued;
	unsigned int backlog;
	struct ssa_event *closing;	/* allocated early: the close must not be lost */
};

struct ssa6_sock {
	struct ssa_sock ssa;
	struct ipv6_pinfo np;
};

static inline struct ssa_sock *ssa_sk(const struct sock *sk)
{
	return (struct ssa_sock *)sk;
}

static inline enum ssa_state ssa_state(const struct ssa_sock *s)
{
	return smp_load_acquire(&s->state);
}

static inline void ssa_set_state(struct ssa_sock *s, enum ssa_state state)
{
	smp_store_release(&s->state, state);
}

/*
 * An event.  Whoever waits for an answer has a reference, and so has the table of those that wait; the list of those
 * that the daemon has not fetched yet has another.
 */
struct ssa_event {
	struct list_head link;
	refcount_t refs;
	u64 number;
	u64 id;
	unsigned int session;	/* the daemon that it is for */
	u8 command;
	bool wants_answer;
	bool answered;
	struct ssa_user *user;
	struct completion done;
	int result;
	void *value;		/* of DATA_RETURN, kvfree */
	size_t value_size;
	size_t size;		/* of the attributes */
	u8 *attributes;		/* as they are put into the message, kvfree */
};

/* event.c */
struct ssa_event *ssa_event_new(const struct sock *sk, u8 command, size_t size);
void ssa_event_put(struct ssa_event *event);
int ssa_event_add(struct ssa_event *event, int type, const void *data, size_t size);
int ssa_event_add_value(struct ssa_event *event, const void *data, size_t size);
int ssa_event_add_caller(struct ssa_event *event);
int ssa_event_post(struct ssa_event *event);
int ssa_event_wait(struct ssa_event *event);
void ssa_event_answer(u64 number, u64 id, int command, int result, const void *value, size_t size);
struct ssa_event *ssa_event_next(void);
void ssa_event_return(struct ssa_event *event);
void ssa_events_fail(int error);
int ssa_user_get(struct ssa_sock *s);
int ssa_user_share(struct ssa_sock *s, const struct ssa_sock *parent);
void ssa_user_put(struct ssa_sock *s);

#define SSA_CALLER_SIZE	(SSA_MAXIMUM_PATH + SSA_MAXIMUM_COMM + 256)
#define SSA_ADDRESS_SIZE (2 * NLA_ALIGN(NLA_HDRLEN + SSA_MAXIMUM_SOCKADDR))

/* socket.c */
extern struct proto ssa_prot;
extern struct inet_protosw ssa_protosw;
#if IS_ENABLED(CONFIG_IPV6)
extern struct proto ssa6_prot;
extern struct inet_protosw ssa6_protosw;
#endif
struct sock *ssa_get(u64 id);
int ssa_publish(struct sock *sk);
void ssa_fields(struct sock *sk);
void ssa_graft(struct ssa_sock *s, struct socket *sock);
void ssa_inherit(struct sock *sk, struct sock *inner);
int ssa_served(const struct ssa_sock *s);
void ssa_finish(struct sock *sk, int error);
void ssa_relay_start(struct ssa_sock *s);
void ssa_daemon_gone(void);
void ssa_carry_to(struct sock *sk, struct sock *inner);
int ssa_await(struct socket *sock, bool nonblock);
int ssa_address(struct socket *sock, bool peer, struct sockaddr_storage *address);

/* listen.c */
int ssa_listen(struct socket *sock, int backlog);
SSA_ACCEPT(ssa_accept);
struct sock *ssa_child_new(struct sock *listener, struct file *tcp, struct file *data, bool ktls);
void ssa_child_drop(struct sock *child);
void ssa_child_discard(struct sock *child);

/* data.c */
__poll_t ssa_poll(struct file *file, struct socket *sock, struct poll_table_struct *table);
int ssa_sendmsg(struct socket *sock, struct msghdr *msg, size_t len);
int ssa_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags);
int ssa_shutdown(struct socket *sock, int how);
int ssa_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg);
void ssa_close_notify(struct ssa_sock *s);
bool ssa_has_ktls(struct sock *sk);
SSA_DECLARE_SENDPAGE

/* option.c */
int ssa_setsockopt(struct socket *sock, int level, int name, sockptr_t value, unsigned int size);
int ssa_getsockopt(struct socket *sock, int level, int name, char __user *value, int __user *size);

/* netlink.c */
extern struct genl_family ssa_family;
unsigned int ssa_session(void);
int ssa_netlink_register(void);
void ssa_netlink_unregister(void);
void ssa_kick(void);

#endif
