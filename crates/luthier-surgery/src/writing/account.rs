//! The ledger of a job.

use luthier_checkpoint::ledger::InputId;
use luthier_checkpoint::{Ledger, LedgerSummary, TensorInfo};

use super::{Job, Origin};
use crate::view::find;
use crate::{Input, Result};
/// The ledger of a job, filled while tensors are written.
pub(super) struct Account<'j> {
    inputs: Vec<&'j Input>,
    ids: Vec<InputId>,
    ledger: Ledger,
}

impl<'j> Account<'j> {
    pub(super) fn new(job: &Job<'j>) -> Result<Account<'j>> {
        let mut ledger = Ledger::new();
        let add = |input: &&Input| ledger.input(&input.label, input.checkpoint.tensors.as_ref());
        let ids: Vec<InputId> = job.inputs.iter().map(add).collect();
        for (input, name, reason) in &job.dropped {
            ledger.dropped(ids[*input], name, reason)?;
        }
        Ok(Account { inputs: job.inputs.clone(), ids, ledger })
    }

    /// Notes a tensor with the bytes that are written; without them a copy is believed to be one.
    pub(super) fn note(&mut self, info: &TensorInfo, origin: &Origin, bytes: Option<&[u8]>) -> Result<()> {
        match origin {
            Origin::Made(how) => Ok(self.ledger.made(&info.name, how)?),
            Origin::Changed { input, name, how } => {
                Ok(self.ledger.changed(&[(self.ids[*input], name)], &info.name, how)?)
            }
            Origin::Merged { sources, how } => {
                let sources: Vec<(InputId, &str)> =
                    sources.iter().map(|(input, name)| (self.ids[*input], name.as_str())).collect();
                Ok(self.ledger.changed(&sources, &info.name, how)?)
            }
            Origin::From { input, name } => {
                let source = &self.inputs[*input].checkpoint.tensors;
                let from = find(source.infos(), name)?.dtype;
                let id = self.ids[*input];
                if from == info.dtype {
                    let Some(bytes) = bytes else {
                        return Ok(self.ledger.copied(id, name, &info.name, &[], &[])?);
                    };
                    return Ok(self.ledger.copied(id, name, &info.name, &source.read(name)?, bytes)?);
                }
                let how = format!("{from} as {}", info.dtype);
                Ok(self.ledger.changed(&[(id, name)], &info.name, &how)?)
            }
        }
    }

    pub(super) fn finish(self, infos: &[TensorInfo]) -> Result<LedgerSummary> {
        Ok(self.ledger.finish(infos)?)
    }
}
