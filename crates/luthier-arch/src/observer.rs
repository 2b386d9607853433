//! Looks at what flows through a running model, without changing it: what goes into each matrix, what each norm reads and
//! gives. Everything that observes shares the one `forward`; without an observer it costs a look at one flag.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use luthier_ops::{Result, Tensor};

/// Sees values on their way. Weights are named as in the layout, which says where they stand.
pub trait Observer: Send + Sync {
    /// x: [b, t, n] is about to be multiplied with the matrix `weight`: [o, n].
    fn matrix(&self, weight: &str, x: &Tensor) -> Result<()>;
    /// The norm `weight`: [n] made y of x, both [.., n].
    fn norm(&self, weight: &str, x: &Tensor, y: &Tensor) -> Result<()>;
    /// The router `weight`: [e, m] gave each expert this share in what tokens become, [b, t, e]; 0 to those not chosen.
    fn shares(&self, weight: &str, shares: &Tensor) -> Result<()> {
        let _ = (weight, shares);
        Ok(())
    }
}

/// Where a model's observer is put; all parts of one model share it.
#[derive(Clone, Default)]
pub struct Tap(Arc<Slot>);

#[derive(Default)]
struct Slot {
    is_open: AtomicBool,
    observer: RwLock<Option<Arc<dyn Observer>>>,
}

impl Tap {
    /// Sets or removes the observer.
    pub fn set(&self, observer: Option<Arc<dyn Observer>>) {
        self.0.is_open.store(observer.is_some(), Ordering::Release);
        *self.0.observer.write().unwrap_or_else(PoisonError::into_inner) = observer;
    }

    /// Lets the observer see, where there is one.
    pub(crate) fn see(&self, look: impl FnOnce(&dyn Observer) -> Result<()>) -> Result<()> {
        if !self.0.is_open.load(Ordering::Acquire) {
            return Ok(());
        }
        let observer = self.0.observer.read().unwrap_or_else(PoisonError::into_inner).clone();
        observer.map_or(Ok(()), |observer| look(observer.as_ref()))
    }
}
