//! Where time goes: spans around operations and around parts of a model, summed up as a tree while [`record`] runs. Without
//! it a span costs a look at one flag.
//!
//! Spans count on the thread that records; what kernels do on other threads happens inside of them. Operations of a backward
//! pass stand under the parts of the model in which they ran forwards.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Threads that record.
static RECORDING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// What was done under one name at one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name beside its siblings.
    pub name: String,
    /// Where it stands; none for the root.
    pub parent: Option<usize>,
    /// How deep, 0 for the root.
    pub depth: usize,
    /// Whether it is an operation: it then has no parts, unless it is one that runs a layer again.
    pub is_operation: bool,
    /// How often.
    pub calls: u64,
    /// How long, its parts included.
    pub time: Duration,
    /// Multiplications and additions, where they are what it costs.
    pub work: Work,
}

/// What an operation has to do at least.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Multiplications and additions of products.
    pub flops: f64,
    /// Bytes of weights, inputs and results that are read or written once.
    pub bytes: f64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// Nodes, parents before their children; the first is the root, whose time is that of all.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The tree.
    pub nodes: Vec<Node>,
}

impl Profile {
    /// Time of each node that no part of it accounts for.
    pub fn own_times(&self) -> Vec<Duration> {
        let mut own: Vec<Duration> = self.nodes.iter().map(|node| node.time).collect();
        for node in &self.nodes {
            if let Some(parent) = node.parent {
                own[parent] = own[parent].saturating_sub(node.time);
            }
        }
        own
    }
}

struct Recorder {
    nodes: Vec<Node>,
    current: usize,
}

impl Recorder {
    fn new() -> Recorder {
        let root = Node {
            name: "all".to_string(),
            parent: None,
            depth: 0,
            is_operation: false,
            calls: 1,
            time: Duration::ZERO,
            work: Work::default(),
        };
        Recorder { nodes: vec![root], current: 0 }
    }

    fn enter(&mut self, name: &str, is_operation: bool) {
        let parent = Some(self.current);
        let found =
            self.nodes.iter().skip(self.current + 1).position(|node| {
                node.parent == parent && node.is_operation == is_operation && node.name == name
            });
        self.current = match found {
            Some(after) => self.current + 1 + after,
            None => {
                self.nodes.push(Node {
                    name: name.to_string(),
                    parent,
                    depth: self.nodes[self.current].depth + 1,
                    is_operation,
                    calls: 0,
                    time: Duration::ZERO,
                    work: Work::default(),
                });
                self.nodes.len() - 1
            }
        };
    }

    fn leave(&mut self, levels: usize, time: Duration, work: Work) {
        self.nodes[self.current].work += work;
        for _ in 0..levels {
            let node = &mut self.nodes[self.current];
            node.calls += 1;
            node.time += time;
            self.current = node.parent.unwrap_or(0);
        }
    }
}

/// Runs `work` and sums up the spans of this thread meanwhile. Not within itself: the inner profile would be empty.
pub fn record<R>(work: impl FnOnce() -> R) -> (R, Profile) {
    struct Stop;
    impl Drop for Stop {
        fn drop(&mut self) {
            RECORDING.fetch_sub(1, Ordering::Relaxed);
            RECORDER.take();
        }
    }
    RECORDER.set(Some(Recorder::new()));
    RECORDING.fetch_add(1, Ordering::Relaxed);
    let stop = Stop;
    let started = Instant::now();
    let result = work();
    let time = started.elapsed();
    let mut nodes = RECORDER.take().map_or_else(|| Recorder::new().nodes, |recorder| recorder.nodes);
    nodes[0].time = time;
    drop(stop);
    (result, Profile { nodes })
}

/// Whether this thread records.
#[inline]
fn is_recording() -> bool {
    RECORDING.load(Ordering::Relaxed) > 0 && RECORDER.with_borrow(Option::is_some)
}

/// Time that counts under a name until it is dropped.
#[must_use]
pub struct Span(Option<Running>);

impl Span {
    /// Adds values of four bytes that were read or written.
    pub(crate) fn moved(&mut self, values: usize) {
        if let Some(running) = &mut self.0 {
            running.work.bytes += (4 * values) as f64;
        }
    }
}

struct Running {
    started: Instant,
    levels: usize,
    work: Work,
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(Running { started, levels, work }) = self.0.take() else { return };
        let time = started.elapsed();
        RECORDER.with_borrow_mut(|recorder| {
            if let Some(recorder) = recorder {
                recorder.leave(levels, time, work);
            }
        });
    }
}

/// A part of a model or of a step.
#[inline]
pub fn part(name: &str) -> Span {
    if !is_recording() {
        return Span(None);
    }
    begin(&[], name, false, Work::default())
}

/// The part of that number: `layer 3`.
#[inline]
pub fn numbered_part(name: &str, number: usize) -> Span {
    if !is_recording() {
        return Span(None);
    }
    begin(&[], &format!("{name} {number}"), false, Work::default())
}

/// An operation, whose name and work are asked for only where somebody records.
#[inline]
pub(crate) fn operation(describe: impl FnOnce() -> (String, Work)) -> Span {
    operation_at(&None, describe)
}

/// The same, under the parts of the model in which it ran forwards.
#[inline]
pub(crate) fn operation_at(place: &Place, describe: impl FnOnce() -> (String, Work)) -> Span {
    if !is_recording() {
        return Span(None);
    }
    let (name, work) = describe();
    begin(place.as_deref().unwrap_or_default(), &name, true, work)
}

fn begin(place: &[String], name: &str, is_operation: bool, work: Work) -> Span {
    RECORDER.with_borrow_mut(|recorder| {
        if let Some(recorder) = recorder {
            place.iter().for_each(|part| recorder.enter(part, false));
            recorder.enter(name, is_operation);
        }
    });
    Span(Some(Running { started: Instant::now(), levels: place.len() + 1, work }))
}

/// Parts of a model below the part of a step (`forward`), outermost first; none where nobody records.
pub(crate) type Place = Option<Box<[String]>>;

/// Where this thread is.
pub(crate) fn place() -> Place {
    if !is_recording() {
        return None;
    }
    RECORDER.with_borrow(|recorder| {
        let recorder = recorder.as_ref()?;
        let mut names = Vec::new();
        let mut at = recorder.current;
        while recorder.nodes[at].depth > 1 {
            names.push(recorder.nodes[at].name.clone());
            at = recorder.nodes[at].parent?;
        }
        names.reverse();
        (!names.is_empty()).then(|| names.into_boxed_slice())
    })
}

/// A weight's name without the layer that it stands in and without `.weight`: `mlp.down_proj`.
pub(crate) fn kind_of(weight: &str) -> &str {
    let name = weight.strip_suffix(".weight").unwrap_or(weight);
    let mut rest = name;
    let mut found = None;
    while let Some((part, behind)) = rest.split_once('.') {
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) && found.is_none() {
            found = Some(behind);
        }
        rest = behind;
    }
    found.unwrap_or_else(|| name.strip_prefix("model.").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_sum_up_by_place() {
        let run = || {
            let _step = part("forward");
            for layer in 0..2 {
                let _layer = numbered_part("layer", layer);
                for _ in 0..3 {
                    let _op = operation(|| ("linear".to_string(), Work { flops: 2.0, bytes: 1.0 }));
                }
            }
            let place = {
                let _layer = numbered_part("layer", 1);
                place()
            };
            drop(_step);
            let _step = part("backward");
            let _op = operation_at(&place, || ("linear".to_string(), Work::default()));
        };
        run();
        let ((), profile) = record(run);
        let all: Vec<(&str, usize, u64, f64)> = profile
            .nodes
            .iter()
            .map(|node| (node.name.as_str(), node.depth, node.calls, node.work.flops))
            .collect();
        let wanted = [
            ("all", 0, 1, 0.0),
            ("forward", 1, 1, 0.0),
            ("layer 0", 2, 1, 0.0),
            ("linear", 3, 3, 6.0),
            ("layer 1", 2, 2, 0.0),
            ("linear", 3, 3, 6.0),
            ("backward", 1, 1, 0.0),
            ("layer 1", 2, 1, 0.0),
            ("linear", 3, 1, 0.0),
        ];
        assert_eq!(all, wanted);
        let own = profile.own_times();
        assert_eq!(own.iter().sum::<Duration>(), profile.nodes[0].time);
        assert!(place().is_none());
    }

    #[test]
    fn kinds_leave_out_the_layer() {
        assert_eq!(kind_of("model.layers.12.mlp.down_proj.weight"), "mlp.down_proj");
        assert_eq!(kind_of("encoder.block.0.layer.1.DenseReluDense.wo.weight"), "layer.1.DenseReluDense.wo");
        assert_eq!(kind_of("model.embed_tokens.weight"), "embed_tokens");
        assert_eq!(kind_of("lm_head"), "lm_head");
    }
}
