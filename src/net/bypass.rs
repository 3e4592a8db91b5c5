//! A way around our memory: a pipe of the kernel, through which bytes of a body go from one socket to another by `splice(2)`. They
//! are moved there, mostly without being copied. Where the system has no such thing, there is none to be had.

#[cfg(any(target_os = "linux", target_os = "android"))]
pub use linux::Bypass;

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub use elsewhere::Bypass;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::sync::Arc;

    use ptth_proto::limits::{BYPASS_LEAST, BYPASS_PIPE};
    use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

    /// One pipe, and how much is in it.
    #[derive(Debug)]
    pub struct Bypass {
        reader: OwnedFd,
        writer: OwnedFd,
        len: usize,
        /// By which its pool counts it.
        alive: Arc<()>,
    }

    impl Bypass {
        /// A new one, if the system has one to give that is worth having.
        pub fn new(alive: &Arc<()>) -> Option<Bypass> {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
            // Where it may not grow it has what the system gave it: a user who has many pipes gets the smallest ones.
            let size = fcntl_setpipe_size(&writer, BYPASS_PIPE).or_else(|_| fcntl_getpipe_size(&writer)).ok()?;
            (size >= BYPASS_LEAST).then(|| Bypass { reader, writer, len: 0, alive: Arc::clone(alive) })
        }

        /// How many bytes are in it.
        pub fn load(&self) -> usize {
            self.len
        }

        /// Whether it is counted by this.
        pub fn is_of(&self, alive: &Arc<()>) -> bool {
            Arc::ptr_eq(&self.alive, alive)
        }

        /// Takes what `from` has, at most so many bytes. The pipe has to be empty: one that is full looks like a socket that
        /// has nothing.
        pub fn take(&mut self, from: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
            debug_assert_eq!(self.len, 0);
            let n = splice(from, None, self.writer.as_fd(), None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?;
            self.len = n;
            Ok(n)
        }

        /// Gives `to` what it takes.
        pub fn give(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
            let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
            let n = splice(self.reader.as_fd(), None, to, None, self.len, flags)?;
            self.len -= n;
            Ok(n)
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod elsewhere {
    use std::io;
    use std::os::fd::BorrowedFd;
    use std::sync::Arc;

    /// There is none.
    #[derive(Debug)]
    pub enum Bypass {}

    impl Bypass {
        /// Never one.
        pub fn new(_: &Arc<()>) -> Option<Bypass> {
            None
        }

        /// How many bytes are in it.
        pub fn load(&self) -> usize {
            match *self {}
        }

        /// Of none.
        pub fn is_of(&self, _: &Arc<()>) -> bool {
            match *self {}
        }

        /// Takes what there is.
        pub fn take(&mut self, _: BorrowedFd<'_>, _: usize) -> io::Result<usize> {
            match *self {}
        }

        /// Gives what is taken.
        pub fn give(&mut self, _: BorrowedFd<'_>) -> io::Result<usize> {
            match *self {}
        }
    }
}
