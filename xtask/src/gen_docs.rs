//! `cargo xtask gen`: documents made from the code, so that they cannot drift. `--check` only compares.

use std::fmt::Write;

use anyhow::bail;

/// Writes the generated documents, or with `--check` fails where one differs.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let check = match arguments {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => bail!("cargo xtask gen [--check], got {arguments:?}"),
    };
    for (name, text) in [("docs/verbs.md", verbs()), ("docs/architectures.md", architectures())] {
        let path = crate::root().join(name);
        if check {
            let stands = std::fs::read_to_string(&path).unwrap_or_default();
            if stands != text {
                bail!("{name} is not what the code says; run `cargo xtask gen` and commit it");
            }
        } else {
            std::fs::write(&path, text)?;
        }
    }
    Ok(())
}

/// Every command with its full help, as the program prints it.
fn verbs() -> String {
    let mut text = String::from("# Commands\n\nMade by `cargo xtask gen` from the program's own help.\n");
    for verb in luthier::verbs::VERBS {
        let command = (verb.augment)(clap::Command::new(verb.name).about(verb.about));
        let mut command = command.bin_name(format!("luthier {}", verb.name)).term_width(100);
        let help = command.render_long_help();
        let _ = write!(text, "\n## luthier {}\n\n```text\n{}\n```\n", verb.name, help.to_string().trim_end());
    }
    text
}

/// The architecture table, each with the first line of its file.
fn architectures() -> String {
    let mut text = String::from(
        "# Architectures\n\nMade by `cargo xtask gen` from `crates/luthier-arch/src/table.rs` and the first line of each architecture's file.\n\n| model_type | what |\n|---|---|\n",
    );
    for architecture in luthier_arch::ARCHITECTURES {
        let name = architecture.model_type;
        let stem = if name == "luthier_encoder_decoder" { "encoder_decoder" } else { name };
        let file = crate::root().join(format!("crates/luthier-arch/src/{stem}.rs"));
        let source = std::fs::read_to_string(file).unwrap_or_default();
        let what = source.lines().next().unwrap_or("").trim_start_matches("//!").trim();
        let _ = writeln!(text, "| `{name}` | {what} |");
    }
    text
}
