//! The one thread pool: exactly as many workers as asked for, work split by index.
//!
//! A task's result depends on its index alone, never on the worker that runs it, so a thread count gives the same
//! bytes each time although idle workers take over tasks of slower ones. Workers spin briefly for the next call and
//! then sleep: a training step or a decoded token makes thousands of calls some microseconds apart.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns of the waiting loop before a worker sleeps, some 50 microseconds.
const SPINS: usize = 2_000;

static WANTED: AtomicUsize = AtomicUsize::new(0);
static POOL: Mutex<Option<Pool>> = Mutex::new(None);

thread_local! {
    static INSIDE_TASK: Cell<bool> = const { Cell::new(false) };
}

/// Sets how many threads compute, the calling one included; 0 means as many as the machine offers. Holds from the
/// next [`run`] on.
pub fn set_threads(n_threads: usize) {
    WANTED.store(n_threads, Ordering::SeqCst);
}

/// How many threads compute.
pub fn threads() -> usize {
    match WANTED.load(Ordering::SeqCst) {
        0 => {
            let offered = std::thread::available_parallelism().map_or(1, usize::from);
            // A racing set_threads wins.
            let _ = WANTED.compare_exchange(0, offered, Ordering::SeqCst, Ordering::SeqCst);
            WANTED.load(Ordering::SeqCst).max(1)
        }
        n_threads => n_threads,
    }
}

/// Runs `task(0) .. task(n_tasks - 1)`, each once, and returns when all are done. A call from within a task runs on
/// the calling thread. A panic of a task is passed on once the others have ended.
pub fn run(n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
    let n_threads = threads();
    if n_tasks <= 1 || n_threads <= 1 || INSIDE_TASK.get() {
        (0..n_tasks).for_each(task);
        return;
    }
    let mut slot = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.as_ref().is_none_or(|pool| pool.shared.shares.len() != n_threads) {
        // The old workers end before the new ones start.
        *slot = None;
        *slot = Some(Pool::start(n_threads));
    }
    let panic = slot.as_ref().expect("the pool was just started").run(n_tasks, task);
    drop(slot);
    if let Some(payload) = panic {
        resume_unwind(payload);
    }
}

/// Runs `task(i, chunk)` on the i-th `chunk_len` values of `values`; the last chunk may be shorter.
pub fn run_chunks<T: Send>(values: &mut [T], chunk_len: usize, task: &(dyn Fn(usize, &mut [T]) + Sync)) {
    let len = values.len();
    let chunk_len = chunk_len.max(1);
    let shared = Shared::new(values);
    run(len.div_ceil(chunk_len), &|chunk| {
        let start = chunk * chunk_len;
        // SAFETY: chunks of different indices do not overlap, and each index runs once.
        task(chunk, unsafe { shared.slice(start, chunk_len.min(len - start)) });
    });
}

/// A mutable slice of which concurrent tasks write disjoint parts.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose caller promises that parts do not overlap.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above; it holds no thread-bound state.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(values: &'a mut [T]) -> Shared<'a, T> {
        Shared { start: values.as_mut_ptr(), len: values.len(), borrow: std::marker::PhantomData }
    }

    /// # Safety
    /// No two slices that live at the same time overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {}", self.len);
        // SAFETY: inside the borrowed slice; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The address of value `at`, for kernels that write strided parts.
    pub(crate) fn pointer(&self, at: usize) -> *mut T {
        assert!(at <= self.len, "value {at} of {}", self.len);
        // SAFETY: inside the borrowed slice or one past its end.
        unsafe { self.start.add(at) }
    }
}

struct Pool {
    shared: Arc<Crew>,
    workers: Vec<JoinHandle<()>>,
}

/// A worker's share of the task indices; others take from it when theirs is empty.
#[repr(align(128))]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
}

struct Crew {
    shares: Vec<Share>,
    /// Counts calls, so that a sleeper knows that a new one came.
    call: AtomicUsize,
    /// Whether the task may be touched. It is written only while this is false and nobody is `active`.
    open: AtomicBool,
    active: AtomicUsize,
    task: UnsafeCell<Option<&'static (dyn Fn(usize) + Sync)>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
}

// SAFETY: `task` is written by the one caller while `open` is false and `active` is 0, and read between `open` being
// seen true by an active worker and that worker's leaving.
unsafe impl Sync for Crew {}
// SAFETY: the task is Sync, and the rest is Send.
unsafe impl Send for Crew {}

impl Pool {
    fn start(n_threads: usize) -> Pool {
        let share = || Share { next: AtomicUsize::new(0), end: AtomicUsize::new(0) };
        let shared = Arc::new(Crew {
            shares: (0..n_threads).map(|_| share()).collect(),
            call: AtomicUsize::new(0),
            open: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            task: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let workers = (1..n_threads)
            .filter_map(|index| {
                let crew = shared.clone();
                // Where the system refuses a thread, the others take over its share.
                std::thread::Builder::new()
                    .name(format!("luthier-{index}"))
                    .spawn(move || crew.serve(index))
                    .ok()
            })
            .collect();
        Pool { shared, workers }
    }

    fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Option<Box<dyn Any + Send>> {
        let crew = &*self.shared;
        let n_threads = crew.shares.len();
        for (index, share) in crew.shares.iter().enumerate() {
            share.next.store(index * n_tasks / n_threads, Ordering::Relaxed);
            share.end.store((index + 1) * n_tasks / n_threads, Ordering::Relaxed);
        }
        // SAFETY: the reference outlives its use: this function waits until no worker is active before it returns.
        let task: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        // SAFETY: `open` is false and nobody is active, so nobody reads.
        unsafe { *crew.task.get() = Some(task) };
        crew.open.store(true, Ordering::SeqCst);
        crew.call.fetch_add(1, Ordering::SeqCst);
        if crew.sleepers.load(Ordering::SeqCst) > 0 {
            drop(crew.bed.lock().unwrap_or_else(PoisonError::into_inner));
            crew.wake.notify_all();
        }
        crew.work(0, task);
        crew.open.store(false, Ordering::SeqCst);
        let mut spins = 0;
        while crew.active.load(Ordering::SeqCst) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        // SAFETY: closed, and nobody is active.
        unsafe { *crew.task.get() = None };
        crew.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.call.fetch_add(1, Ordering::SeqCst);
        drop(self.shared.bed.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics; there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

impl Crew {
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.wait_for_call(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            seen = self.call.load(Ordering::SeqCst);
            self.active.fetch_add(1, Ordering::SeqCst);
            if self.open.load(Ordering::SeqCst) {
                // SAFETY: active and open: the caller waits for this worker before it takes the task away.
                if let Some(task) = unsafe { *self.task.get() } {
                    self.work(index, task);
                }
            }
            self.active.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn wait_for_call(&self, seen: usize) {
        for _ in 0..SPINS {
            if self.call.load(Ordering::Acquire) != seen {
                return;
            }
            std::hint::spin_loop();
        }
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.call.load(Ordering::SeqCst) == seen {
            bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Runs the tasks of its own share, then what the others have left.
    fn work(&self, index: usize, task: &(dyn Fn(usize) + Sync)) {
        INSIDE_TASK.set(true);
        for turn in 0..self.shares.len() {
            let share = &self.shares[(index + turn) % self.shares.len()];
            let end = share.end.load(Ordering::Relaxed);
            loop {
                let at = share.next.fetch_add(1, Ordering::Relaxed);
                if at >= end {
                    break;
                }
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(at))) {
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
                }
            }
        }
        INSIDE_TASK.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_for_any_thread_count() {
        for n_threads in [1, 2, 3, 5] {
            set_threads(n_threads);
            for n_tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                run(n_tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn nested_calls_and_calls_from_several_threads_end() {
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let count = |_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        };
                        run(3, &|_| run(4, &count));
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 200 * 3 * 4);
    }

    #[test]
    fn a_panicking_task_is_passed_on_and_the_pool_lives() {
        for _ in 0..20 {
            let result = catch_unwind(|| run(8, &|i| assert_ne!(i, 5)));
            assert!(result.is_err());
        }
        let done = AtomicUsize::new(0);
        run(8, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn chunks_cover_the_slice() {
        let mut values = vec![0usize; 103];
        run_chunks(&mut values, 10, &|i, chunk| chunk.fill(i + 1));
        assert!(values.iter().enumerate().all(|(at, &value)| value == at / 10 + 1));
    }
}
