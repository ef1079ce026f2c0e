/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the module share.
 *
 * main.c    registration: the protocols, the netlink family
 * socket.c  the life of a socket: create, bind, connect, release
 * listen.c  listeners, and connections on their way to accept
 * data.c    send, receive, poll, shutdown
 * ktls.c    records of kTLS that are no data
 * option.c  getsockopt and setsockopt
 * file.c    the files that options name
 * keep.c    options of the connection, for the addresses of a name
 * upgrade.c TLS_UPGRADE
 * complaint.c  TLS_ERROR, where it was found here
 * event.c   events on their way to the daemon, and its answers
 * worker.c  the daemon's workers, and the events that they have not fetched
 * user.c    what each user has
 * netlink.c what the daemon asks for
 * proc.c    /proc/net/ssa, and what /proc/PID/fdinfo says of a socket
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

/* Bits of the flags of a socket. */
#define SSA_NOSPACE	0	/* somebody waits for room to send */
#define SSA_BROKEN	1	/* SO_ERROR has been told how the connection broke */

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
	unsigned int session;		/* the worker that knows it */
	enum ssa_state state;		/* written under lock_sock(), read with acquire */
	int refused;			/* the daemon's answer to the socket itself */
	unsigned long flags;
	bool nodelay;			/* TCP_NODELAY and TCP_CORK as the program has set them */
	bool cork;
	bool ktls;
	bool eof;			/* the daemon vouches for the end of stream */
	bool relaying;
	bool shut;			/* the program has ended its own receiving */
	bool ended;			/* kTLS: close_notify has come */
	bool alert_half;		/* kTLS: the first byte of an alert has come */
	/* kTLS: how much of the header of a handshake message has come */
	u8 message_have;
	u32 message;			/* kTLS: that header */
	u32 message_left;		/* kTLS: what is still to come of its body */
	int fault;			/* kTLS: why nothing can be received any more */
	unsigned long receiving;	/* kTLS: bit 0: somebody receives */
	wait_queue_head_t receivers;	/* kTLS: who waits to receive */
	bool reset;			/* the inner socket has been in an attempt */
	struct ssa_user *user;
	const struct cred *cred;	/* of who connects to a name */
	const struct cred *binder;	/* of who has bound it */
	/* what TLS_ERROR says, where the daemon has nothing to say; under ssa_complaint_lock */
	char *complaint;
	struct list_head kept;		/* options for connections that are yet to be made */
	unsigned int kept_count;
	struct file *inner_file;	/* keeps inner alive */
	struct file *spare_file;	/* the inner socket while an upgraded one is in its place */
	struct file *data_file;		/* keeps data alive */
	/* the real TCP socket; replaced under lock_sock(), until it is established */
	struct socket *inner;
	/* where plaintext goes: inner (kTLS), or our end of a pair */
	struct socket *data;
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
	return smp_load_acquire(&s->state);	/* and what was written before it */
}

static inline void ssa_set_state(struct ssa_sock *s, enum ssa_state state)
{
	smp_store_release(&s->state, state);	/* after all that belongs to it */
}

/*
 * An event.  Whoever waits for an answer has a reference, and so has the table of those that wait;
 * the list of those that the daemon has not fetched yet has another.
 */
struct ssa_event {
	struct list_head link;
	refcount_t refs;
	u64 number;
	u64 id;
	unsigned int session;	/* of the worker that gets it */
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
int ssa_event_answer(unsigned int session, u64 number, u64 id, int result, const void *value,
		     size_t size);
void ssa_events_fail(unsigned int session, struct list_head *unfetched, int error);

/* user.c */
int ssa_user_get(struct ssa_sock *s);
int ssa_user_share(struct ssa_sock *s, const struct ssa_sock *parent);
void ssa_user_put(struct ssa_sock *s);
int ssa_user_charge(struct ssa_event *event, const struct ssa_sock *s);
void ssa_user_uncharge(struct ssa_event *event);

/* worker.c */
int ssa_worker_add(u32 portid, u64 daemon);
unsigned int ssa_worker_remove(u32 portid, struct list_head *events, bool *last);
unsigned int ssa_worker_session(u32 portid);
unsigned int ssa_worker_take(void);
unsigned int ssa_worker_share(unsigned int session);
void ssa_worker_drop(unsigned int session);
bool ssa_worker_alive(unsigned int session);
int ssa_worker_post(struct ssa_event *event);
struct ssa_event *ssa_worker_next(unsigned int session);
void ssa_worker_return(struct ssa_event *event);
void ssa_worker_withdraw(struct ssa_event *event);
void ssa_workers_forget(void);

#define SSA_CALLER_SIZE	(SSA_MAXIMUM_PATH + SSA_MAXIMUM_COMM + 256)
#define SSA_ADDRESS_SIZE (2 * NLA_ALIGN(NLA_HDRLEN + SSA_MAXIMUM_SOCKADDR))

/* socket.c */
extern struct xarray ssa_sockets;
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
void ssa_carry_buffers(struct sock *sk, struct sock *inner);
void ssa_inherit(struct sock *sk, struct sock *inner);
int ssa_served(const struct ssa_sock *s);
int ssa_refused(struct ssa_sock *s);
void ssa_finish(struct sock *sk, int error);
void ssa_relay_start(struct ssa_sock *s);
void ssa_want_space(struct ssa_sock *s);
void ssa_daemon_gone(unsigned int session);
int ssa_prepare_close(struct ssa_sock *s);
void ssa_carry_to(struct sock *sk, struct sock *inner);
int ssa_await(struct socket *sock, bool nonblock);
struct file *ssa_hold_inner(struct ssa_sock *s);
int ssa_address(struct socket *sock, bool peer, struct sockaddr_storage *address);

/* listen.c */
int ssa_listen(struct socket *sock, int backlog);
SSA_ACCEPT(ssa_accept);
struct sock *ssa_child_new(struct sock *listener, struct file *tcp, struct file *data, bool ktls);
void ssa_child_drop(struct sock *child);
void ssa_children_drop(struct list_head *queue);
void ssa_child_discard(struct sock *child);

/* data.c */
__poll_t ssa_poll(struct file *file, struct socket *sock, struct poll_table_struct *table);
int ssa_sendmsg(struct socket *sock, struct msghdr *msg, size_t len);
int ssa_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags);
int ssa_shutdown(struct socket *sock, int how);
int ssa_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg);
SSA_DECLARE_SENDPAGE;

/* ktls.c */
bool ssa_has_ktls(struct sock *sk);
int ssa_ktls_recvmsg(struct ssa_sock *s, struct msghdr *msg, size_t len, int flags);
int ssa_ktls_may_send(struct ssa_sock *s, int flags);
void ssa_ktls_flags(struct msghdr *msg);
int ssa_ktls_result(struct ssa_sock *s, int result);
int ssa_ktls_available(struct ssa_sock *s);
int ssa_ktls_shutdown(struct ssa_sock *s, int how);
void ssa_ktls_close(struct ssa_sock *s);

/* file.c */
struct ssa_event *ssa_event_of_file(struct sock *sk, int level, int name, const u8 *value,
				    size_t size);
bool ssa_names_file(int name, const u8 *value, size_t size);

/* complaint.c */
__printf(2, 3) void ssa_complain(struct ssa_sock *s, const char *format, ...);
char *ssa_complaint(struct ssa_sock *s);

/* upgrade.c */
int ssa_upgrade(struct socket *sock, const u8 *value, size_t size);

/* keep.c */
int ssa_keep(struct ssa_sock *s, int level, int name, const void *value, unsigned int size);
int ssa_apply_kept(struct ssa_sock *s, struct socket *inner);
void ssa_keep_none(struct ssa_sock *s);

/* option.c */
void ssa_apply_delays(struct ssa_sock *s);
int ssa_setsockopt(struct socket *sock, int level, int name, sockptr_t value, unsigned int size);
int ssa_getsockopt(struct socket *sock, int level, int name, char __user *value, int __user *size);

/* netlink.c */
extern struct genl_family ssa_family;
int ssa_netlink_register(void);
void ssa_netlink_unregister(void);
void ssa_kick(u32 portid);

/* proc.c */
int ssa_proc_register(void);
void ssa_proc_unregister(void);
void ssa_show_fdinfo(struct seq_file *seq, struct socket *sock);

#endif
