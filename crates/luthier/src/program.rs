//! Reads the command line, finds the verb, runs it, and says how it ended: exit code 0 done, 1 failed, 2 wrong use.

use std::process::ExitCode;

use clap::{Args, Command, FromArgMatches};

use crate::session::{Faulty, Session};
use crate::verbs::{self, VERBS};

/// Names a kind of processor to compute as on: `avx2` or `plain`.
const CPU_VARIABLE: &str = "LUTHIER_CPU";

/// Runs the program on the process's own arguments.
pub fn main() -> ExitCode {
    luthier_kernels::process::prepare();
    let matches = command().get_matches();
    let session = Session::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    luthier_kernels::pool::set_threads(session.thread_count());
    session.announce();
    if let Some(word) = std::env::var_os(CPU_VARIABLE)
        && !word.to_str().is_some_and(luthier_kernels::simd::limit)
    {
        complain(&anyhow::anyhow!("{CPU_VARIABLE}={}: wanted avx2 or plain", word.display()));
        return ExitCode::from(2);
    }
    let outcome = match matches.subcommand() {
        Some((name, options)) => {
            let verb = verbs::find(name).expect("clap only knows the verbs of the table");
            (verb.run)(options, &session)
        }
        None => verbs::demonstrate(&session),
    };
    let (outcome, code) = match outcome {
        Ok(report) => (Ok(report), ExitCode::SUCCESS),
        Err(error) => match error.downcast::<Faulty>() {
            Ok(Faulty(report)) => (Ok(report), ExitCode::FAILURE),
            Err(error) => (Err(error), ExitCode::FAILURE),
        },
    };
    match outcome.and_then(|report| session.print(&report)) {
        Ok(()) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// The whole command line, from which help and docs/verbs.md are made.
pub fn command() -> Command {
    let mut command = Command::new("luthier")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Turns big open-weight language models into the small one that you need, and proves that the result is right")
        .after_help("MODEL is a Hugging Face folder, a GGUF file, hf:org/name[@revision], or builtin.\nWithout a command: the demonstration (luthier demo).");
    // Derived arguments bring their struct's comment as the description, which is what `luthier VERB --help` begins with.
    let about = command.get_about().cloned().unwrap_or_default();
    command = Session::augment_args(command).about(about);
    command = command.mut_arg("threads", |argument| argument.allow_negative_numbers(true));
    for verb in VERBS {
        let with_flags = (verb.augment)(Command::new(verb.name));
        // A number below 0 is refused by the flag that it was given to, not taken for another flag.
        let with_flags = with_flags.mut_args(|argument| {
            let takes_value = argument.get_action().takes_values();
            argument.allow_negative_numbers(takes_value)
        });
        let long = with_flags.get_long_about().or(with_flags.get_about()).cloned().unwrap_or_default();
        command = command.subcommand(with_flags.about(verb.about).long_about(long));
    }
    command
}

/// Ends the program as clap does when options do not make sense: what is wrong, the verb's usage, exit code 2.
pub fn wrong_use(verb: &str, what: &str) -> ! {
    let mut command = command();
    command.build();
    let verb = command.find_subcommand_mut(verb).expect("a verb of the table");
    verb.error(clap::error::ErrorKind::ValueValidation, what).exit()
}

#[allow(clippy::print_stderr)]
fn complain(error: &anyhow::Error) {
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    let mut message: Vec<&str> = Vec::new();
    for (at, part) in chain.iter().enumerate() {
        // Nor a model that the next part names anyway.
        let named = part.strip_prefix("model ");
        if named.zip(chain.get(at + 1)).is_some_and(|(name, next)| next.contains(name)) {
            continue;
        }
        // A cause that its parent already quotes is not said twice.
        if !message.last().is_some_and(|said| said.contains(part.as_str())) {
            message.push(part);
        }
    }
    eprintln!("luthier: {}", message.join(": "));
}
