//! `cargo xtask python-env [NAME]`: the pinned Python environments that golden files and side-by-side checks come from.
//!
//! The program itself never needs Python. Each environment has a variable that names an interpreter to use instead, one that
//! has the packages already.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Packages, pinned: golden files are what these versions compute.
pub(crate) struct Environment {
    name: &'static str,
    /// The environment variable that names an interpreter to use as it is.
    variable: &'static str,
    requirements: &'static [&'static str],
}

/// The models and file formats of Hugging Face, and gguf.
pub(crate) static TRANSFORMERS: Environment = Environment {
    name: "transformers",
    variable: "LUTHIER_REFERENCE_PYTHON",
    requirements: &[
        "torch==2.15.0",
        "transformers==5.23.0",
        "peft==0.21.2",
        "gguf==0.19.0",
        "safetensors==0.8.0",
        "sentencepiece==0.2.3",
        "protobuf==7.36.2",
        "numpy==2.4.6",
        "jinja2==3.1.6",
    ],
};

/// Merges.
pub(crate) static MERGEKIT: Environment = Environment {
    name: "mergekit",
    variable: "LUTHIER_MERGEKIT_PYTHON",
    requirements: &[
        "mergekit==0.1.5",
        "torch==2.15.0",
        "transformers==5.23.0",
        "tokenizers==0.23.3",
        "peft==0.21.2",
        "safetensors==0.8.0",
        "numpy==2.4.6",
        "pydantic==2.14.3",
        "accelerate==1.15.0",
    ],
};

/// nf4, fp4 and int8.
pub(crate) static BITSANDBYTES: Environment = Environment {
    name: "bitsandbytes",
    variable: "LUTHIER_BITSANDBYTES_PYTHON",
    requirements: &[
        "bitsandbytes==0.50.2",
        "torch==2.15.0",
        "transformers==5.23.0",
        "safetensors==0.8.0",
        "numpy==2.4.6",
        "accelerate==1.15.0",
    ],
};

/// mistral.rs, to compare speed with.
pub(crate) static MISTRALRS: Environment = Environment {
    name: "mistralrs",
    variable: "LUTHIER_MISTRALRS_PYTHON",
    requirements: &["mistralrs==0.9.5"],
};

/// Encoder-decoders in 8 bits, and the converter to them.
pub(crate) static CTRANSLATE2: Environment = Environment {
    name: "ctranslate2",
    variable: "LUTHIER_CTRANSLATE2_PYTHON",
    requirements: &["ctranslate2==4.8.5", "torch==2.15.0", "transformers==5.23.0"],
};

/// Trimmed vocabularies.
pub(crate) static VOCABTRIMMER: Environment = Environment {
    name: "vocabtrimmer",
    variable: "LUTHIER_VOCABTRIMMER_PYTHON",
    requirements: &[
        "vocabtrimmer==0.0.2",
        "torch==2.15.0",
        "transformers==5.23.0",
        "tokenizers==0.23.3",
        "sentencepiece==0.2.3",
        "safetensors==0.8.0",
    ],
};

static ALL: [&Environment; 6] =
    [&TRANSFORMERS, &MERGEKIT, &BITSANDBYTES, &CTRANSLATE2, &MISTRALRS, &VOCABTRIMMER];

/// Makes the environment where it is missing, checks the versions, and prints the interpreter's path.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let name = match arguments {
        [] => TRANSFORMERS.name,
        [name] => name,
        _ => bail!("python-env takes one name, came {arguments:?}"),
    };
    let names: Vec<&str> = ALL.iter().map(|environment| environment.name).collect();
    let found = ALL.iter().find(|environment| environment.name == name);
    let found = found.with_context(|| format!("no environment {name}; there are {}", names.join(", ")))?;
    println!("{}", found.interpreter()?.display());
    Ok(())
}

impl Environment {
    /// The interpreter of the environment, made where it is missing.
    pub(crate) fn interpreter(&self) -> Result<PathBuf> {
        let variable = self.variable;
        #[allow(clippy::disallowed_methods)] // Only xtask and the program itself read the environment.
        if let Some(given) = std::env::var_os(variable) {
            let given = PathBuf::from(given);
            self.check_versions(&given)
                .with_context(|| format!("{variable} names an interpreter that does not fit"))?;
            return Ok(given);
        }
        let folder = crate::root().join("target/python").join(self.name);
        let interpreter = folder.join("bin/python");
        if interpreter.exists() && self.check_versions(&interpreter).is_ok() {
            return Ok(interpreter);
        }
        println!("setting up {} (several GB, once)", folder.display());
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut install = Command::new(&interpreter);
        succeed(install.args(["-m", "pip", "install", "--quiet"]).args(self.requirements))?;
        self.check_versions(&interpreter)?;
        Ok(interpreter)
    }

    fn check_versions(&self, interpreter: &Path) -> Result<()> {
        let script = "import importlib.metadata as m, sys\nfor name in sys.argv[1:]: print(name + '==' + m.version(name))";
        let names = self.requirements.iter().map(|wanted| wanted.split("==").next().unwrap_or(wanted));
        let output = Command::new(interpreter)
            .args(["-c", script])
            .args(names)
            .output()
            .with_context(|| format!("cannot start {}", interpreter.display()))?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {problem}", interpreter.display());
        let text = String::from_utf8_lossy(&output.stdout);
        for (wanted, came) in self.requirements.iter().zip(text.lines()) {
            ensure!(*wanted == came, "{}: wanted {wanted}, came {came}", interpreter.display());
        }
        Ok(())
    }
}

/// Runs a command, its output shown, and refuses when it does not end well.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
