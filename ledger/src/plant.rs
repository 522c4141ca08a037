//! A bug that can be planted into the verifier, to show that those who judge it would find it (`docs/adr/0035-planted-bugs.md`). In a
//! build without debug assertions, or without `std`, there is none.

#[cfg(all(debug_assertions, feature = "std"))]
mod planted {
    use core::cell::Cell;

    std::thread_local! {
        static ANY_CONSISTENCY: Cell<bool> = const { Cell::new(false) };
    }

    /// From now on, dual proofs that are verified in this thread need not show that one tree is the beginning of the other; or they
    /// need to again.
    pub fn accept_any_consistency(planted: bool) {
        ANY_CONSISTENCY.set(planted);
    }

    pub(crate) fn is_any_consistency_accepted() -> bool {
        ANY_CONSISTENCY.get()
    }
}

#[cfg(all(debug_assertions, feature = "std"))]
pub use planted::accept_any_consistency;
#[cfg(all(debug_assertions, feature = "std"))]
pub(crate) use planted::is_any_consistency_accepted;

/// Never.
#[cfg(not(all(debug_assertions, feature = "std")))]
#[inline(always)]
pub(crate) const fn is_any_consistency_accepted() -> bool {
    false
}
