//! The code base checks itself: the arrows between modules, the fences around unsafe code and locks, what every file owes its reader,
//! and that README and docs speak of things that exist. What a rule excepts is listed beside it with its reason, and an exception
//! that nothing needs any more is a failure too.

mod arrows;
mod docs;
mod exceptions;
mod fences;
mod files;
mod specification;
mod tree;
