//! How much memory a call holds at its peak, per thread, so that tests beside it do not count.

#![allow(unsafe_code, reason = "an allocator is unsafe by its nature; this one only counts and hands on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator with a count. A test program makes it its `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter;

impl Meter {
    /// Runs `call`; answers the bytes that it held at most, beyond what was held before.
    pub fn peak_of<T>(call: impl FnOnce() -> T) -> (T, usize) {
        let before = HELD.get();
        PEAK.set(before);
        let out = call();
        (out, PEAK.get().saturating_sub(before).max(0).unsigned_abs())
    }
}

/// Threads that are ending may allocate when the counts are gone.
fn count(bytes: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is handed on to `System` as it came; counting allocates nothing and cannot panic.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `dealloc`; the memory came from `System`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size.cast_signed() - layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `realloc`; the memory came from `System`.
        unsafe { System.realloc(at, layout, new_size) }
    }
}
