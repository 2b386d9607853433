//! The verb table: one verb, one file, one line here, sorted by name.

use clap::{ArgMatches, Args, Command, FromArgMatches};
use serde::de::DeserializeOwned;

use crate::session::{Report, Session};

mod adapt;
mod bench;
mod card;
mod convert;
mod demo;
mod diff;
mod doctor;
mod embed;
mod extract_adapter;
mod frontier;
mod fuse_adapter;
mod generate;
mod grow;
mod info;
mod inherit;
mod lineage;
mod logits;
mod merge;
mod name;
mod perplexity;
mod pretrain;
mod profile;
mod prune;
mod quantize;
mod replay;
mod run;
mod score;
mod slice;
mod transfer;
mod trim_vocab;
mod upcycle;
mod version;

pub(crate) use merge::open as open_for_merge;

/// All verbs.
pub const VERBS: &[Verb] = &[
    verb::<adapt::Adapt>(),
    verb::<bench::Bench>(),
    verb::<card::Card>(),
    verb::<convert::Convert>(),
    verb::<demo::Demo>(),
    verb::<diff::Diff>(),
    verb::<doctor::Doctor>(),
    verb::<embed::Embed>(),
    verb::<extract_adapter::ExtractAdapter>(),
    verb::<frontier::Frontier>(),
    verb::<fuse_adapter::FuseAdapter>(),
    verb::<generate::Generate>(),
    verb::<grow::Grow>(),
    verb::<info::Info>(),
    verb::<inherit::Inherit>(),
    verb::<lineage::ShowLineage>(),
    verb::<logits::Logits>(),
    verb::<merge::Merge>(),
    verb::<name::Name>(),
    verb::<perplexity::Perplexity>(),
    verb::<pretrain::Pretrain>(),
    verb::<profile::Profile>(),
    verb::<prune::Prune>(),
    verb::<quantize::Quantize>(),
    verb::<replay::Replay>(),
    verb::<run::Run>(),
    verb::<score::Score>(),
    verb::<slice::Slice>(),
    verb::<transfer::Transfer>(),
    verb::<trim_vocab::TrimVocab>(),
    verb::<upcycle::Upcycle>(),
    verb::<version::Version>(),
];

/// Something that one does to a model. Flags and the keys of a recipe's step come from the same struct.
pub trait Act: Args + FromArgMatches + DeserializeOwned {
    /// As typed.
    const NAME: &'static str;
    /// One line of help.
    const ABOUT: &'static str;
    /// What options say only together, before anything is opened; the message says what is wrong.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
    /// Does it.
    fn act(self, session: &Session) -> anyhow::Result<Report>;
}

/// A line of the table.
pub struct Verb {
    /// As typed.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// Adds the verb's flags to its command.
    pub augment: fn(Command) -> Command,
    /// Runs it from flags.
    pub run: fn(&ArgMatches, &Session) -> anyhow::Result<Report>,
    /// Refuses the keys of a recipe's step that do not make sense, before anything is done.
    pub check_step: fn(&serde_json::Value) -> anyhow::Result<()>,
    /// Runs it from the keys of a recipe's step.
    pub run_step: fn(&serde_json::Value, &Session) -> anyhow::Result<Report>,
}

const fn verb<A: Act>() -> Verb {
    Verb {
        name: A::NAME,
        about: A::ABOUT,
        augment: |command| A::augment_args(command),
        run: |matches, session| {
            let action = A::from_arg_matches(matches)?;
            action.check().unwrap_or_else(|what| crate::program::wrong_use(A::NAME, &what));
            action.act(session)
        },
        check_step: |keys| step::<A>(keys).map(drop),
        run_step: |keys, session| step::<A>(keys)?.act(session),
    }
}

fn step<A: Act>(keys: &serde_json::Value) -> anyhow::Result<A> {
    let action: A = crate::recipe::from_value(keys)?;
    action.check().map_err(anyhow::Error::msg)?;
    Ok(action)
}

/// The verb called `name`.
pub fn find(name: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|verb| verb.name == name)
}

/// What the program does without a command.
pub fn demonstrate(session: &Session) -> anyhow::Result<Report> {
    demo::Demo::standard().act(session)
}

/// What a verb would do, for machines and in words.
fn plan_report(plan: &luthier_surgery::Plan) -> anyhow::Result<Report> {
    let mut text = String::new();
    for tensor in &plan.tensors {
        text.push_str(&format!("{} {} {:?} from {}\n", tensor.name, tensor.dtype, tensor.shape, tensor.from));
    }
    for note in &plan.notes {
        text.push_str(&format!("{note}\n"));
    }
    text.push_str(&format!(
        "{} tensors, {:.1} MB; memory at most {:.1} MB besides the mapped inputs",
        plan.tensors.len(),
        plan.size_bytes as f64 / 1e6,
        plan.memory_bytes as f64 / 1e6
    ));
    Ok(Report { json: serde_json::to_value(plan)?, text })
}
