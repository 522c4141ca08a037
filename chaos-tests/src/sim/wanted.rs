//! What faults that overlap want of one thing.

/// Faults may last at the same time and end one after the other. The worst that is wanted holds; what one fault wanted is gone when
/// that one ends, and not before.
#[derive(Debug)]
pub struct Wanted<T>(Vec<T>);

impl<T> Default for Wanted<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + Ord> Wanted<T> {
    /// A fault begins.
    pub fn begin(&mut self, wanted: T) {
        self.0.push(wanted);
    }

    /// A fault that wanted this ends.
    pub fn end(&mut self, wanted: T) {
        if let Some(at) = self.0.iter().position(|there| *there == wanted) {
            self.0.swap_remove(at);
        }
    }

    /// The greatest of all that is wanted now.
    pub fn worst(&self) -> Option<T> {
        self.0.iter().max().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_holds_until_its_own_end() {
        let mut wanted = Wanted::default();
        assert_eq!(wanted.worst(), None);
        wanted.begin(300);
        wanted.begin(20);
        wanted.begin(20);
        assert_eq!(wanted.worst(), Some(300));
        wanted.end(300);
        assert_eq!(wanted.worst(), Some(20));
        wanted.end(20);
        assert_eq!(wanted.worst(), Some(20), "the other one goes on");
        wanted.end(20);
        assert_eq!(wanted.worst(), None);
    }
}
