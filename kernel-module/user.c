// SPDX-License-Identifier: GPL-2.0-only
/*
 * What each user has: sockets, and events that the daemon has not answered.  Both are bounded.
 */
#include <linux/hashtable.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "ssa.h"

static unsigned int max_events = 4096;
module_param(max_events, uint, 0644);
MODULE_PARM_DESC(max_events, "the most events of one user that the daemon has not answered");

static unsigned int max_sockets = 16384;
module_param(max_sockets, uint, 0644);
MODULE_PARM_DESC(max_sockets, "the most TLS sockets of one user");

static DEFINE_SPINLOCK(ssa_user_lock);
static DEFINE_HASHTABLE(ssa_users, 6);

static void ssa_user_ref(struct ssa_user *user)
{
	spin_lock(&ssa_user_lock);
	user->refs++;
	spin_unlock(&ssa_user_lock);
}

static void ssa_user_unref(struct ssa_user *user)
{
	spin_lock(&ssa_user_lock);
	if (--user->refs)
		user = NULL;
	else
		hash_del(&user->node);
	spin_unlock(&ssa_user_lock);
	kfree(user);
}

/* A socket is gone. */
void ssa_user_put(struct ssa_sock *s)
{
	struct ssa_user *user;

	/*
	 * Under the lock: a connection may be counted for the user of its listener at this moment.
	 */
	spin_lock(&ssa_user_lock);
	user = s->user;
	s->user = NULL;
	spin_unlock(&ssa_user_lock);
	if (!user)
		return;
	atomic_dec(&user->sockets);
	ssa_user_unref(user);
}

/* Count a socket for the user who makes it. */
int ssa_user_get(struct ssa_sock *s)
{
	kuid_t uid = current_euid();
	struct ssa_user *user, *fresh;

	fresh = kzalloc(sizeof(*fresh), GFP_KERNEL_ACCOUNT);
	if (!fresh)
		return -ENOMEM;
	fresh->uid = uid;
	spin_lock(&ssa_user_lock);
	hash_for_each_possible(ssa_users, user, node, __kuid_val(uid)) {
		if (uid_eq(user->uid, uid))
			goto found;
	}
	user = fresh;
	fresh = NULL;
	hash_add(ssa_users, &user->node, __kuid_val(uid));
found:
	user->refs++;
	spin_unlock(&ssa_user_lock);
	kfree(fresh);
	s->user = user;
	if (atomic_inc_return(&user->sockets) > READ_ONCE(max_sockets) &&
	    !capable(CAP_SYS_RESOURCE)) {
		ssa_user_put(s);
		return -EMFILE;
	}
	return 0;
}

/* Count an accepted socket for the user of its listener, which the program may have closed. */
int ssa_user_share(struct ssa_sock *s, const struct ssa_sock *parent)
{
	spin_lock(&ssa_user_lock);
	s->user = parent->user;
	if (s->user)
		s->user->refs++;
	spin_unlock(&ssa_user_lock);
	if (!s->user)
		return -ECONNABORTED;
	if (atomic_inc_return(&s->user->sockets) > READ_ONCE(max_sockets)) {
		ssa_user_put(s);
		return -EMFILE;
	}
	return 0;
}

/*
 * Count an event of a socket.  Those without an answer do not count: each socket holds its last one
 * from its beginning.
 */
int ssa_user_charge(struct ssa_event *event, const struct ssa_sock *s)
{
	if (!s->user || !event->wants_answer)
		return 0;
	ssa_user_ref(s->user);
	event->user = s->user;
	return atomic_inc_return(&event->user->events) > READ_ONCE(max_events) ? -ENOBUFS : 0;
}

/* An event is gone. */
void ssa_user_uncharge(struct ssa_event *event)
{
	if (!event->user)
		return;
	atomic_dec(&event->user->events);
	ssa_user_unref(event->user);
}
