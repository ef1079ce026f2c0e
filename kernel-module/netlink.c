// SPDX-License-Identifier: GPL-2.0-only
/*
 * The generic netlink family: what the daemon asks for.
 *
 * Only the registered daemon may ask or answer: a socket of the initial network namespace whose sender has CAP_NET_ADMIN
 * in the initial user namespace.  When that socket is released, everything that waits ends.
 */
#include <linux/module.h>
#include <linux/netlink.h>
#include <linux/un.h>
#include <net/tcp.h>

#include "ssa.h"

static const struct genl_multicast_group ssa_groups[] = {
	{ .name = SSA_MCGRP_NOTIFY },
};

/*
 * Tell a worker that there are events, or, with the port 0, all who listen that a daemon may register.  Never blocks.  What
 * cannot be sent shows as ENOBUFS at the receivers, which then ask.
 */
void ssa_kick(u32 portid)
{
	struct sk_buff *skb;
	void *header;
	int error = -ENOBUFS;

	skb = genlmsg_new(0, GFP_KERNEL);
	header = skb ? genlmsg_put(skb, 0, 0, &ssa_family, 0, SSA_C_NEXT) : NULL;
	if (header) {
		genlmsg_end(skb, header);
		error = portid ? genlmsg_unicast(&init_net, skb, portid) :
				 genlmsg_multicast(&ssa_family, skb, 0, 0, GFP_KERNEL);
	} else {
		nlmsg_free(skb);
	}
	if (error && error != -ESRCH && error != -ECONNREFUSED)
		genl_set_err(&ssa_family, &init_net, 0, 0, -ENOBUFS);
}

/* The session of whoever sends, or an error. */
static int ssa_sender(struct genl_info *info, unsigned int *session)
{
	*session = ssa_worker_session(info->snd_portid);
	if (*session)
		return 0;
	GENL_SET_ERR_MSG(info, "not a registered worker of the daemon");
	return -EPERM;
}

/* The socket that a request names, held; or an error. */
static struct sock *ssa_named(struct genl_info *info)
{
	unsigned int session;
	struct sock *sk;
	int error;

	error = ssa_sender(info, &session);
	if (error)
		return ERR_PTR(error);
	if (GENL_REQ_ATTR_CHECK(info, SSA_A_ID))
		return ERR_PTR(-EINVAL);
	sk = ssa_get(nla_get_u64(info->attrs[SSA_A_ID]));
	if (!sk) {
		GENL_SET_ERR_MSG(info, "the program has closed the socket");
		return ERR_PTR(-ECONNABORTED);
	}
	if (ssa_sk(sk)->session != session) {
		GENL_SET_ERR_MSG(info, "the socket is another worker's");
		sock_put(sk);
		return ERR_PTR(-EPERM);
	}
	return sk;
}

/* Reply to a request with a descriptor; takes over one reference of the file, also on error. */
static int ssa_reply(struct genl_info *info, struct socket *named, u64 id, u64 new_id, struct file *file)
{
	struct sockaddr_storage address;
	struct sk_buff *skb;
	void *header;
	int fd = -1;
	int error;
	int size;

	if (file) {
		fd = get_unused_fd_flags(O_CLOEXEC);
		if (fd < 0) {
			error = fd;
			goto put;
		}
	}
	error = -ENOMEM;
	skb = genlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	if (!skb)
		goto unused;
	header = genlmsg_put_reply(skb, info, &ssa_family, 0, info->genlhdr->cmd);
	error = -EMSGSIZE;
	if (!header || nla_put(skb, SSA_A_ID, sizeof(id), &id) ||
	    (new_id && nla_put(skb, SSA_A_NEW_ID, sizeof(new_id), &new_id)) ||
	    (file && nla_put_u32(skb, SSA_A_FD, fd)))
		goto unbuilt;
	if (named) {
		size = ssa_address(named, false, &address);
		if (size > 0 && nla_put(skb, SSA_A_SOCKADDR_EXTERNAL, size, &address))
			goto unbuilt;
		size = ssa_address(named, true, &address);
		if (size > 0 && nla_put(skb, SSA_A_SOCKADDR_REMOTE, size, &address))
			goto unbuilt;
	}
	genlmsg_end(skb, header);
	error = genlmsg_reply(skb, info);
	if (error)
		goto unused;
	if (file)
		fd_install(fd, file);
	return 0;

unbuilt:
	nlmsg_free(skb);
unused:
	if (fd >= 0)
		put_unused_fd(fd);
put:
	if (file)
		fput(file);
	return error;
}

/* A connected pair of AF_UNIX stream sockets: ours, and the daemon's, which is non-blocking. */
static int ssa_pair(struct net *net, struct file **ours, struct file **theirs)
{
	struct socket *a, *b;
	struct file *file;
	int error;

	error = __sock_create(net, AF_UNIX, SOCK_STREAM, 0, &a, 0);
	if (error)
		return error;
	error = __sock_create(net, AF_UNIX, SOCK_STREAM, 0, &b, 0);
	if (error)
		goto release_a;
	error = READ_ONCE(a->ops)->socketpair(a, b);
	if (error)
		goto release_b;
	file = sock_alloc_file(a, 0, NULL);	/* releases a on error */
	if (IS_ERR(file)) {
		sock_release(b);
		return PTR_ERR(file);
	}
	*ours = file;
	file = sock_alloc_file(b, O_NONBLOCK, NULL);
	if (IS_ERR(file)) {
		fput(*ours);
		*ours = NULL;
		return PTR_ERR(file);
	}
	*theirs = file;
	return 0;

release_b:
	sock_release(b);
release_a:
	sock_release(a);
	return error;
}

static int ssa_do_register(struct sk_buff *skb, struct genl_info *info)
{
	u64 daemon = info->attrs[SSA_A_DAEMON] ? nla_get_u64(info->attrs[SSA_A_DAEMON]) : 0;
	int error;

	if (GENL_REQ_ATTR_CHECK(info, SSA_A_VERSION))
		return -EINVAL;
	if (nla_get_u32(info->attrs[SSA_A_VERSION]) != SSA_PROTOCOL_VERSION) {
		GENL_SET_ERR_MSG(info, "another version of the protocol");
		return -EPROTONOSUPPORT;
	}
	error = ssa_worker_add(info->snd_portid, daemon);
	if (error)
		GENL_SET_ERR_MSG(info, "another daemon is registered, or too many workers are");
	return error;
}

static int ssa_do_next(struct sk_buff *skb, struct genl_info *info)
{
	struct ssa_event *event;
	struct sk_buff *reply;
	unsigned int session;
	void *header;
	int error;

	error = ssa_sender(info, &session);
	if (error)
		return error;
	event = ssa_worker_next(session);
	if (!event)
		return -ENOENT;
	reply = genlmsg_new(event->size, GFP_KERNEL);
	header = reply ? genlmsg_put_reply(reply, info, &ssa_family, 0, event->command) : NULL;
	if (!header) {
		nlmsg_free(reply);
		ssa_worker_return(event);	/* not lost: the daemon asks again */
		return -ENOBUFS;
	}
	skb_put_data(reply, event->attributes, event->size);
	genlmsg_end(reply, header);
	error = genlmsg_reply(reply, info);
	if (error)
		ssa_worker_return(event);	/* the daemon's receive buffer is full: it will ask again */
	else
		ssa_event_put(event);
	return error;
}

static int ssa_do_answer(struct sk_buff *skb, struct genl_info *info)
{
	const struct nlattr *attribute;
	int remaining, result = 0, error;
	unsigned int session;
	size_t size = 0;
	u8 *value = NULL;

	error = ssa_sender(info, &session);
	if (error)
		return error;
	if (GENL_REQ_ATTR_CHECK(info, SSA_A_EVENT) || GENL_REQ_ATTR_CHECK(info, SSA_A_ID))
		return -EINVAL;
	if (info->genlhdr->cmd != SSA_C_DATA_RETURN) {
		if (GENL_REQ_ATTR_CHECK(info, SSA_A_RETURN))
			return -EINVAL;
		result = nla_get_s32(info->attrs[SSA_A_RETURN]);
	} else {
		nlmsg_for_each_attr(attribute, info->nlhdr, GENL_HDRLEN, remaining) {
			if (nla_type(attribute) == SSA_A_OPTVAL)
				size += nla_len(attribute);
		}
		if (size > SSA_MAXIMUM_VALUE)
			return -EMSGSIZE;
		value = kvmalloc(size ?: 1, GFP_KERNEL);
		if (!value)
			return -ENOMEM;
		size = 0;
		nlmsg_for_each_attr(attribute, info->nlhdr, GENL_HDRLEN, remaining) {
			if (nla_type(attribute) == SSA_A_OPTVAL) {
				memcpy(value + size, nla_data(attribute), nla_len(attribute));
				size += nla_len(attribute);
			}
		}
	}
	error = ssa_event_answer(session, nla_get_u64(info->attrs[SSA_A_EVENT]),
				 nla_get_u64(info->attrs[SSA_A_ID]), result, value, size);
	if (error)
		GENL_SET_ERR_MSG(info, "the event is another worker's");
	kvfree(value);
	return error;
}

/* Make room: attempts that have ended are no candidates any more.  Under lock_sock. */
static void ssa_forget_candidates(struct ssa_sock *s)
{
	unsigned int index, kept = 0;

	for (index = 0; index < s->candidate_count; index++) {
		struct file *file = s->candidates[index];

		if (READ_ONCE(sock_from_file(file)->sk->sk_state) == TCP_CLOSE)
			fput(file);
		else
			s->candidates[kept++] = file;
	}
	s->candidate_count = kept;
}

/* Bind a new inner socket where the program has bound the first one; both may have the address, since both are the program's. */
static int ssa_bind_as_first(struct ssa_sock *s, struct socket *inner)
{
	struct sockaddr_storage address;
	const struct cred *old;
	int size, error;

	if (!s->binder)
		return 0;
	size = ssa_address(s->inner, false, &address);
	if (size < 0)
		return size;
	old = override_creds(s->binder);
	inner->sk->sk_reuse = SK_FORCE_REUSE;
	error = READ_ONCE(inner->ops)->bind(inner, (struct sockaddr *)&address, size);
	inner->sk->sk_reuse = s->inner->sk->sk_reuse;
	revert_creds(old);
	return error;
}

/* A TCP socket that is connecting to an address; with the credentials of the program, under lock_sock. */
static struct file *ssa_candidate_new(struct ssa_sock *s, struct sockaddr_storage *address, int size)
{
	struct sock *sk = (struct sock *)s;
	struct socket *inner;
	struct file *file;
	int error;

	error = __sock_create(sock_net(sk), sk->sk_family, SOCK_STREAM, IPPROTO_TCP, &inner, 0);
	if (error)
		return ERR_PTR(error);
	file = sock_alloc_file(inner, O_NONBLOCK, NULL);	/* releases inner on error */
	if (IS_ERR(file))
		return file;
	tcp_sock_set_nodelay(inner->sk);
	ssa_carry_to(sk, inner->sk);
	error = ssa_apply_kept(s, inner);
	if (!error)
		error = ssa_bind_as_first(s, inner);
	if (!error)
		error = READ_ONCE(inner->ops)->connect(inner, (struct sockaddr *)address, size, O_NONBLOCK);
	if (error && error != -EINPROGRESS) {
		fput(file);
		return ERR_PTR(error);
	}
	return file;
}

/* An attempt to one of the addresses of a name, with the credentials of the program, in its network namespace. */
static int ssa_fetch_address(struct sock *sk, struct genl_info *info)
{
	struct ssa_sock *s = ssa_sk(sk);
	const struct nlattr *attribute = info->attrs[SSA_A_SOCKADDR_REMOTE];
	struct sockaddr_storage address = {};
	const struct cred *old;
	struct file *file;
	int size, error;

	size = min_t(int, nla_len(attribute), sizeof(address));
	memcpy(&address, nla_data(attribute), size);
	if (address.ss_family == AF_INET && sk->sk_family == AF_INET6) {
		struct sockaddr_in in = *(struct sockaddr_in *)&address;
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&address;

		memset(&address, 0, sizeof(address));
		in6->sin6_family = AF_INET6;
		in6->sin6_port = in.sin_port;
		ipv6_addr_set_v4mapped(in.sin_addr.s_addr, &in6->sin6_addr);
		size = sizeof(*in6);
	}
	if (address.ss_family != sk->sk_family)
		return -EAFNOSUPPORT;
	lock_sock(sk);
	error = -ECONNABORTED;
	if (s->state != SSA_CONNECTING || !s->cred)
		goto unlock;
	ssa_forget_candidates(s);
	error = -ENOBUFS;
	if (s->candidate_count == SSA_CANDIDATES)
		goto unlock;
	old = override_creds(s->cred);
	file = ssa_candidate_new(s, &address, size);
	revert_creds(old);
	error = PTR_ERR_OR_ZERO(file);
	if (!error) {
		s->candidates[s->candidate_count++] = get_file(file);
		release_sock(sk);
		return ssa_reply(info, sock_from_file(file), s->id, 0, file);
	}
unlock:
	release_sock(sk);
	return error;
}

static int ssa_do_fetch(struct sk_buff *skb, struct genl_info *info)
{
	struct sock *sk = ssa_named(info);
	struct ssa_sock *s;
	struct file *file = NULL;
	int error = -ECONNABORTED;

	if (IS_ERR(sk))
		return PTR_ERR(sk);
	s = ssa_sk(sk);
	if (info->attrs[SSA_A_SOCKADDR_REMOTE]) {
		error = ssa_fetch_address(sk, info);
		goto put;
	}
	lock_sock(sk);
	if ((s->state == SSA_CONNECTING && !s->cred) || s->state == SSA_LISTEN)
		file = get_file(s->inner_file);
	release_sock(sk);
	if (file)
		error = ssa_reply(info, sock_from_file(file), s->id, 0, file);
put:
	sock_put(sk);
	return error;
}

static bool ssa_same(struct socket *sock, bool peer, const struct nlattr *attribute)
{
	struct sockaddr_storage address;
	int size = ssa_address(sock, peer, &address);

	return size > 0 && size <= nla_len(attribute) && !memcmp(&address, nla_data(attribute), size);
}

/* Of the attempts to the addresses of a name, the one that the daemon has chosen; the others end.  Under lock_sock. */
static int ssa_choose(struct ssa_sock *s, struct genl_info *info)
{
	struct file *chosen = NULL;

	if (GENL_REQ_ATTR_CHECK(info, SSA_A_SOCKADDR_EXTERNAL) || GENL_REQ_ATTR_CHECK(info, SSA_A_SOCKADDR_REMOTE))
		return -EINVAL;
	while (s->candidate_count) {
		struct file *file = s->candidates[--s->candidate_count];
		struct socket *sock = sock_from_file(file);

		if (!chosen && ssa_same(sock, false, info->attrs[SSA_A_SOCKADDR_EXTERNAL]) &&
		    ssa_same(sock, true, info->attrs[SSA_A_SOCKADDR_REMOTE]))
			chosen = file;
		else
			fput(file);
	}
	if (!chosen)
		return -ENOENT;
	fput(s->inner_file);
	s->inner_file = chosen;
	s->inner = sock_from_file(chosen);
	return 0;
}

static int ssa_do_established(struct sk_buff *skb, struct genl_info *info)
{
	struct sock *sk = ssa_named(info);
	struct file *ours = NULL, *theirs = NULL;
	struct ssa_sock *s;
	bool ktls;
	int error;

	if (IS_ERR(sk))
		return PTR_ERR(sk);
	s = ssa_sk(sk);
	ktls = info->attrs[SSA_A_DATA_PATH] && nla_get_u8(info->attrs[SSA_A_DATA_PATH]) == SSA_DATA_PATH_KTLS;
	if (!ktls) {
		error = ssa_pair(genl_info_net(info), &ours, &theirs);
		if (error)
			goto put;
	}
	lock_sock(sk);
	error = -ECONNABORTED;
	if (s->state != SSA_CONNECTING)
		goto unlock;
	if (s->cred) {
		error = ssa_choose(s, info);
		if (error)
			goto unlock;
	}
	if (ktls) {
		error = -EINVAL;
		if (!ssa_has_ktls(s->inner->sk)) {	/* never plaintext to the network */
			GENL_SET_ERR_MSG(info, "the TCP socket carries no kTLS in both directions");
			goto unlock;
		}
		ours = get_file(s->inner_file);
	}
	error = ssa_reply(info, NULL, s->id, 0, theirs);
	theirs = NULL;
	if (error)
		goto unlock;
	s->data_file = ours;
	s->data = sock_from_file(ours);
	s->ktls = ktls;
	ours = NULL;
	ssa_apply_delays(s);
	ssa_relay_start(s);
	ssa_finish(sk, 0);
unlock:
	release_sock(sk);
	if (ours)
		fput(ours);
	if (theirs)
		fput(theirs);
put:
	sock_put(sk);
	return error;
}

static int ssa_do_accepted(struct sk_buff *skb, struct genl_info *info)
{
	struct file *tcp = NULL, *ours = NULL, *theirs = NULL;
	struct sock *sk = ssa_named(info);
	struct sock *child = NULL;
	struct socket *inner;
	struct ssa_sock *s;
	bool ktls;
	int error;

	if (IS_ERR(sk))
		return PTR_ERR(sk);
	s = ssa_sk(sk);
	ktls = info->attrs[SSA_A_DATA_PATH] && nla_get_u8(info->attrs[SSA_A_DATA_PATH]) == SSA_DATA_PATH_KTLS;
	error = -EINVAL;
	if (GENL_REQ_ATTR_CHECK(info, SSA_A_FD))
		goto put;
	tcp = fget(nla_get_u32(info->attrs[SSA_A_FD]));
	inner = tcp ? sock_from_file(tcp) : NULL;
	if (!inner || inner->sk->sk_protocol != IPPROTO_TCP || inner->sk->sk_type != SOCK_STREAM ||
	    inner->sk->sk_family != sk->sk_family || !net_eq(sock_net(inner->sk), sock_net(sk)) ||
	    inner->sk->sk_state == TCP_LISTEN || !inet_sk(inner->sk)->inet_dport ||
	    (ktls && !ssa_has_ktls(inner->sk))) {
		GENL_SET_ERR_MSG(info, "not a connection of this listener");
		goto put;
	}
	if (ktls) {
		ours = get_file(tcp);
	} else {
		error = ssa_pair(genl_info_net(info), &ours, &theirs);
		if (error)
			goto put;
	}
	child = ssa_child_new(sk, tcp, ours, ktls);
	if (IS_ERR(child)) {
		error = PTR_ERR(child);
		child = NULL;
		goto put;
	}
	lock_sock(sk);
	if (s->state != SSA_LISTEN)
		error = -ECONNABORTED;
	else if (s->queued > s->backlog)
		error = -EAGAIN;
	else
		error = ssa_reply(info, NULL, s->id, ssa_sk(child)->id, theirs ? get_file(theirs) : NULL);
	if (!error) {
		list_add_tail(&ssa_sk(child)->link, &s->queue);
		s->queued++;
		child = NULL;
		sk->sk_data_ready(sk);
	}
	release_sock(sk);
put:
	if (child)
		ssa_child_discard(child);
	if (ours)
		fput(ours);
	if (theirs)
		fput(theirs);
	if (tcp)
		fput(tcp);
	sock_put(sk);
	return error;
}

static int ssa_do_eof(struct sk_buff *skb, struct genl_info *info)
{
	struct sock *sk = ssa_named(info);

	if (IS_ERR(sk))
		return PTR_ERR(sk);
	WRITE_ONCE(ssa_sk(sk)->eof, true);
	sock_put(sk);
	return 0;
}

static const struct nla_policy ssa_policy[SSA_A_MAX + 1] = {
	[SSA_A_ID] = { .type = NLA_U64 },
	[SSA_A_SOCKADDR_EXTERNAL] = NLA_POLICY_RANGE(NLA_BINARY, sizeof(struct sockaddr_in), SSA_MAXIMUM_SOCKADDR),
	[SSA_A_SOCKADDR_REMOTE] = NLA_POLICY_RANGE(NLA_BINARY, sizeof(struct sockaddr_in), SSA_MAXIMUM_SOCKADDR),
	[SSA_A_OPTVAL] = { .type = NLA_BINARY, .len = SSA_MAXIMUM_CHUNK },
	[SSA_A_RETURN] = NLA_POLICY_RANGE(NLA_S32, -MAX_ERRNO, 0),
	[SSA_A_EVENT] = { .type = NLA_U64 },
	[SSA_A_DATA_PATH] = NLA_POLICY_MAX(NLA_U8, SSA_DATA_PATH_KTLS),
	[SSA_A_VERSION] = { .type = NLA_U32 },
	[SSA_A_FD] = { .type = NLA_U32 },
	[SSA_A_DAEMON] = NLA_POLICY_MIN(NLA_U64, 1),
};

#define SSA_OPERATION(command, method) { .cmd = command, .doit = method, .flags = GENL_ADMIN_PERM }

static const struct genl_ops ssa_operations[] = {
	SSA_OPERATION(SSA_C_RETURN, ssa_do_answer),
	SSA_OPERATION(SSA_C_DATA_RETURN, ssa_do_answer),
	SSA_OPERATION(SSA_C_HANDSHAKE_RETURN, ssa_do_answer),
	SSA_OPERATION(SSA_C_REGISTER, ssa_do_register),
	SSA_OPERATION(SSA_C_NEXT, ssa_do_next),
	SSA_OPERATION(SSA_C_FETCH, ssa_do_fetch),
	SSA_OPERATION(SSA_C_ESTABLISHED, ssa_do_established),
	SSA_OPERATION(SSA_C_ACCEPTED, ssa_do_accepted),
	SSA_OPERATION(SSA_C_EOF, ssa_do_eof),
};

struct genl_family ssa_family __ro_after_init = {
	.name = SSA_GENL_NAME,
	.version = SSA_GENL_VERSION,
	.maxattr = SSA_A_MAX,
	.policy = ssa_policy,
	.module = THIS_MODULE,
	.ops = ssa_operations,
	.n_ops = ARRAY_SIZE(ssa_operations),
	.mcgrps = ssa_groups,
	.n_mcgrps = ARRAY_SIZE(ssa_groups),
	.parallel_ops = true,
	SSA_RESV_START
};

static int ssa_netlink_event(struct notifier_block *block, unsigned long action, void *data)
{
	const struct netlink_notify *notify = data;
	unsigned int session;
	LIST_HEAD(events);
	bool last;

	if (action != NETLINK_URELEASE || notify->protocol != NETLINK_GENERIC || !net_eq(notify->net, &init_net))
		return NOTIFY_DONE;
	session = ssa_worker_remove(notify->portid, &events, &last);
	if (!session)
		return NOTIFY_DONE;
	ssa_events_fail(session, &events, -ENETDOWN);
	ssa_daemon_gone(session);
	if (last)
		ssa_kick(0);	/* one that stands by may take over */
	return NOTIFY_DONE;
}

static struct notifier_block ssa_notifier = { .notifier_call = ssa_netlink_event };

int __init ssa_netlink_register(void)
{
	int error = genl_register_family(&ssa_family);

	if (error)
		return error;
	error = netlink_register_notifier(&ssa_notifier);
	if (error)
		genl_unregister_family(&ssa_family);
	return error;
}

void ssa_netlink_unregister(void)
{
	netlink_unregister_notifier(&ssa_notifier);
	genl_unregister_family(&ssa_family);
	ssa_workers_forget();
}
