// SPDX-License-Identifier: GPL-2.0-only
/*
 * Options of the connection, for connections that are yet to be made.
 *
 * A connect to a name makes a TCP socket for each address that is tried.  What the program has set
 * on the inner socket before has to hold for whichever of them is chosen, so it is kept, each
 * option once, in the order in which they were first set.
 */
#include <linux/module.h>
#include <linux/slab.h>

#include "ssa.h"

#define SSA_MAXIMUM_KEPT	64
#define SSA_MAXIMUM_KEPT_SIZE	1024

struct ssa_kept {
	struct list_head link;
	int level;
	int name;
	unsigned int size;
	u8 value[];
};

/* Remember an option, instead of an older value.  Under lock_sock. */
int ssa_keep(struct ssa_sock *s, int level, int name, const void *value, unsigned int size)
{
	struct ssa_kept *kept, *old;

	if (size > SSA_MAXIMUM_KEPT_SIZE)
		return -EINVAL;
	kept = kmalloc(struct_size(kept, value, size), GFP_KERNEL_ACCOUNT);
	if (!kept)
		return -ENOMEM;
	kept->level = level;
	kept->name = name;
	kept->size = size;
	memcpy(kept->value, value, size);
	list_for_each_entry(old, &s->kept, link) {
		if (old->level == level && old->name == name) {
			list_replace(&old->link, &kept->link);
			kfree(old);
			return 0;
		}
	}
	if (s->kept_count == SSA_MAXIMUM_KEPT) {
		kfree(kept);
		return -ENOBUFS;
	}
	list_add_tail(&kept->link, &s->kept);
	s->kept_count++;
	return 0;
}

/*
 * Set on a new inner socket what was set before.  With the program's credentials, under lock_sock.
 */
int ssa_apply_kept(struct ssa_sock *s, struct socket *inner)
{
	struct ssa_kept *kept;
	int error;

	list_for_each_entry(kept, &s->kept, link) {
		error = READ_ONCE(inner->ops)
				->setsockopt(inner, kept->level, kept->name,
					     KERNEL_SOCKPTR(kept->value), kept->size);
		if (error)
			return error;
	}
	return 0;
}

void ssa_keep_none(struct ssa_sock *s)
{
	struct ssa_kept *kept, *next;

	list_for_each_entry_safe(kept, next, &s->kept, link) {
		list_del(&kept->link);
		kfree(kept);
	}
	s->kept_count = 0;
}
