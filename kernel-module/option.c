// SPDX-License-Identifier: GPL-2.0-only
/*
 * getsockopt and setsockopt: those of TLS are the daemon's, those of the connection are the inner
 * socket's.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sockptr.h>
#include <linux/tcp.h>
#include <net/tcp.h>

#include "ssa.h"

#define SSA_MAXIMUM_OPTION	(64 * 1024)

static const char ssa_gone[] = "the daemon that served this socket is gone";

static int ssa_set_tls(struct sock *sk, int level, int name, const u8 *value, size_t size)
{
	struct ssa_sock *s = ssa_sk(sk);
	struct ssa_event *event;
	int error = ssa_refused(s);

	if (error)
		return error;
	if (ssa_names_file(name, value, size) && ssa_state(s) == SSA_NEW) {
		event = ssa_event_of_file(sk, level, name, value, size);
	} else {
		event = ssa_event_new(sk, SSA_C_SETSOCKOPT_NOTIFY, size + 4 * NLA_HDRLEN + 64);
		if (!IS_ERR(event)) {
			ssa_event_add(event, SSA_A_OPTLEVEL, &level, sizeof(level));
			ssa_event_add(event, SSA_A_OPTNAME, &name, sizeof(name));
			ssa_event_add_value(event, value, size);
		}
	}
	if (IS_ERR(event))
		return PTR_ERR(event);
	ssa_complain(s, NULL);
	error = ssa_event_post(event);
	if (!error)
		error = ssa_event_wait(event);
	ssa_event_put(event);
	return error;
}

/* TCP_NODELAY and TCP_CORK act on the connection where the program's writes are its records. */
void ssa_apply_delays(struct ssa_sock *s)
{
	const struct proto_ops *ops = READ_ONCE(s->inner->ops);
	int nodelay = s->nodelay, cork = s->cork;

	if (!s->ktls)
		return;
	ops->setsockopt(s->inner, SOL_TCP, TCP_NODELAY, KERNEL_SOCKPTR(&nodelay), sizeof(nodelay));
	ops->setsockopt(s->inner, SOL_TCP, TCP_CORK, KERNEL_SOCKPTR(&cork), sizeof(cork));
}

/*
 * The relay wants its segments at once; the program's choice would only slow it, and is what it
 * reads back.
 */
static int ssa_set_delay(struct sock *sk, int name, sockptr_t value, unsigned int size)
{
	struct ssa_sock *s = ssa_sk(sk);
	int chosen;

	if (size < sizeof(chosen))
		return -EINVAL;
	if (copy_from_sockptr(&chosen, value, sizeof(chosen)))
		return -EFAULT;
	lock_sock(sk);
	if (name == TCP_NODELAY)
		s->nodelay = chosen;
	else
		s->cork = chosen;
	ssa_apply_delays(s);
	release_sock(sk);
	return 0;
}

/*
 * An option of the connection.  What is set before there is one, or while a name's are made, holds
 * for whichever it will be. The value is copied without the lock: the program's memory may be a
 * file system's that takes its time, and the daemon must not wait for that.
 */
static int ssa_set_inner(struct sock *sk, int level, int name, sockptr_t value, unsigned int size)
{
	struct ssa_sock *s = ssa_sk(sk);
	unsigned int index;
	void *copy;
	int error;

	if (size > SSA_MAXIMUM_OPTION)
		return -EINVAL;
	copy = memdup_sockptr(value, size);
	if (IS_ERR(copy))
		return PTR_ERR(copy);
	lock_sock(sk);
	error = READ_ONCE(s->inner->ops)
			->setsockopt(s->inner, level, name, KERNEL_SOCKPTR(copy), size);
	if (!error && (s->state == SSA_NEW || (s->state == SSA_CONNECTING && s->cred)))
		error = ssa_keep(s, level, name, copy, size);
	for (index = 0; !error && s->state == SSA_CONNECTING && index < s->candidate_count;
	     index++) {
		struct socket *candidate = sock_from_file(s->candidates[index]);

		error = READ_ONCE(candidate->ops)
				->setsockopt(candidate, level, name, KERNEL_SOCKPTR(copy), size);
	}
	release_sock(sk);
	kfree(copy);
	return error;
}

/* An option that could bypass TLS, or do without its guarantees. */
static int ssa_forbidden(int level, int name)
{
	if (level == SOL_TLS)
		return -ENOPROTOOPT;
	if (level == SOL_TCP) {
		switch (name) {
		case TCP_ULP:
		case TCP_REPAIR:
		case TCP_REPAIR_QUEUE:
		case TCP_REPAIR_OPTIONS:
		case TCP_REPAIR_WINDOW:
		case TCP_QUEUE_SEQ:
		case TCP_MD5SIG:
		case TCP_MD5SIG_EXT:
#ifdef TCP_AO_ADD_KEY
		case TCP_AO_ADD_KEY:
#endif
		case TCP_ZEROCOPY_RECEIVE:
			return -ENOPROTOOPT;
		case TCP_FASTOPEN:
		case TCP_FASTOPEN_CONNECT:
		case TCP_FASTOPEN_KEY:
		case TCP_FASTOPEN_NO_COOKIE:
			return -EOPNOTSUPP;
		}
	}
	if (level == SOL_IPV6 && name == IPV6_ADDRFORM)
		return -ENOPROTOOPT;
	return 0;
}

int ssa_setsockopt(struct socket *sock, int level, int name, sockptr_t value, unsigned int size)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	u8 *copy;
	int error;

	if (level == SOL_SOCKET) {
		if (name == SO_ZEROCOPY)
			return -EOPNOTSUPP;
		error = sock_setsockopt(sock, level, name, value, size);
		if (!error) {
			lock_sock(sk);
			ssa_carry_to(sk, s->inner->sk);
			release_sock(sk);
		}
		return error;
	}
	if (level != IPPROTO_TLS) {
		error = ssa_forbidden(level, name);
		if (error) {
			ssa_complain(s,
				     "option %d of level %d is not available: it could bypass TLS",
				     name, level);
			return error;
		}
		if (level == SOL_TCP && (name == TCP_NODELAY || name == TCP_CORK))
			return ssa_set_delay(sk, name, value, size);
		return ssa_set_inner(sk, level, name, value, size);
	}
	if (size > SSA_MAXIMUM_OPTION) {
		ssa_complain(s, "an option's value has at most %d bytes, not %u",
			     SSA_MAXIMUM_OPTION, size);
		return -EMSGSIZE;
	}
	copy = kvmalloc(size ?: 1, GFP_KERNEL_ACCOUNT);
	if (!copy)
		return -ENOMEM;
	error = -EFAULT;
	if (!copy_from_sockptr(copy, value, size)) {
		if (name == TLS_UPGRADE)
			error = ssa_upgrade(sock, copy, size);
		else
			error = ssa_set_tls(sk, level, name, copy, size);
	}
	memzero_explicit(copy, size);
	kvfree(copy);
	return error;
}

/* Give the program a value, or tell it how much room one needs. */
static int ssa_give(char __user *value, int __user *size, int room, const void *data, int needed)
{
	if (room >= needed && needed && copy_to_user(value, data, needed))
		return -EFAULT;
	if (put_user(needed, size))
		return -EFAULT;
	return room < needed ? -ERANGE : 0;
}

/* An integer, as the kernel gives one: cut to the room that there is. */
static int ssa_give_integer(char __user *value, int __user *size, int integer)
{
	int room;

	if (get_user(room, size))
		return -EFAULT;
	if (room < 0)
		return -EINVAL;
	room = min_t(int, room, sizeof(integer));
	if (put_user(room, size) || copy_to_user(value, &integer, room))
		return -EFAULT;
	return 0;
}

/* The daemon's answer; instead is given in place of an empty string. */
static int ssa_get_tls(struct sock *sk, int level, int name, char __user *value, int __user *size,
		       int room, const char *instead)
{
	struct ssa_event *event;
	int error;

	error = ssa_served(ssa_sk(sk));
	if (error)
		return error;
	event = ssa_event_new(sk, SSA_C_GETSOCKOPT_NOTIFY, 64);
	if (IS_ERR(event))
		return PTR_ERR(event);
	ssa_event_add(event, SSA_A_OPTLEVEL, &level, sizeof(level));
	ssa_event_add(event, SSA_A_OPTNAME, &name, sizeof(name));
	error = ssa_event_post(event);
	if (!error)
		error = ssa_event_wait(event);
	if (!error && instead && event->value_size <= 1)
		error = ssa_give(value, size, room, instead, strlen(instead) + 1);
	else if (!error)
		error = ssa_give(value, size, room, event->value, event->value_size);
	ssa_event_put(event);
	return error;
}

static int ssa_get_inner(struct ssa_sock *s, int level, int name, char __user *value,
			 int __user *size)
{
	struct file *file = ssa_hold_inner(s);
	struct socket *inner = sock_from_file(file);
	int error;

	error = READ_ONCE(inner->ops)->getsockopt(inner, level, name, value, size);
	fput(file);
	return error;
}

int ssa_getsockopt(struct socket *sock, int level, int name, char __user *value, int __user *size)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	char *complaint;
	int error, room;

	if (level != IPPROTO_TLS) {
		error = ssa_forbidden(level, name);
		if (error == -ENOPROTOOPT)
			return error;
		if (level == SOL_TCP && name == TCP_NODELAY)
			return ssa_give_integer(value, size, s->nodelay);
		if (level == SOL_TCP && name == TCP_CORK)
			return ssa_give_integer(value, size, s->cork);
		return ssa_get_inner(s, level, name, value, size);
	}
	if (get_user(room, size))
		return -EFAULT;
	if (room < 0)
		return -EINVAL;
	if (name != TLS_ERROR)
		return ssa_get_tls(sk, level, name, value, size, room, NULL);
	complaint = ssa_complaint(s);
	/* Of a connection the daemon's word comes first: it may tell how that ended. */
	if (complaint && (ssa_state(s) != SSA_ESTABLISHED || ssa_served(s)))
		error = ssa_give(value, size, room, complaint, strlen(complaint) + 1);
	else if (!ssa_worker_alive(s->session))
		error = ssa_give(value, size, room, ssa_gone, sizeof(ssa_gone));
	else
		error = ssa_get_tls(sk, level, name, value, size, room, complaint);
	kfree(complaint);
	return error;
}
