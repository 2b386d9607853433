//! adapter_config.json and card of an extracted adapter.

use std::collections::BTreeMap;

use luthier_checkpoint::SideFile;
use luthier_checkpoint::adapter::NewAdapter;
use luthier_checkpoint::layout::{Layout, StackKind};
use serde_json::{Map, Value};

use crate::Input;

/// What the config says of an adapter.
pub(crate) struct Contents<'c> {
    pub(crate) base: &'c Input,
    pub(crate) layout: Option<&'c Layout>,
    /// Rank by the path of each module that has a pair.
    pub(crate) ranks: BTreeMap<String, usize>,
    /// `lora_alpha`; none: the scale is 1.
    pub(crate) alpha: Option<f64>,
    /// Paths of modules that are stored whole.
    pub(crate) saved: Vec<String>,
    /// Modules of which a bias is stored.
    pub(crate) biases: Vec<String>,
    pub(crate) fan_in_fan_out: bool,
    pub(crate) has_tied_head: bool,
}

/// adapter_config.json.
pub(crate) fn config(contents: &Contents) -> Map<String, Value> {
    let infos = contents.base.checkpoint.tensors.infos();
    let adapter = NewAdapter {
        base: &contents.base.label,
        tensors: infos.iter().map(|info| info.name.as_str()).collect(),
        ranks: contents.ranks.clone(),
        alpha: contents.alpha,
        saved: contents.saved.clone(),
        biases: contents.biases.clone(),
        fan_in_fan_out: contents.fan_in_fan_out,
        keeps_ties: contents.has_tied_head
            && contents.saved.iter().any(|path| is_embedding(contents.layout, path)),
        task_type: task_type(contents),
    };
    adapter.config()
}

/// Whether the module at `path` is the embedding that the layout names.
pub(super) fn is_embedding(layout: Option<&Layout>, path: &str) -> bool {
    use luthier_checkpoint::layout::Part;
    let name = format!("{path}.weight");
    layout.is_some_and(|layout| {
        layout.tensors.iter().any(|spec| spec.name == name && spec.role.part == Part::Embedding)
    })
}

/// What peft's class of the model is; none where none fits, for those of classification bring heads of their own.
fn task_type(contents: &Contents) -> Option<&'static str> {
    let class =
        contents.base.checkpoint.config.get("architectures").and_then(|classes| classes.get(0)?.as_str());
    match (contents.layout, class) {
        (_, Some(class)) if class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel") => {
            Some("CAUSAL_LM")
        }
        (_, Some(class)) if class.ends_with("ForConditionalGeneration") => Some("SEQ_2_SEQ_LM"),
        (_, Some(_)) | (None, None) => None,
        (Some(layout), None) => {
            let has_encoder = layout.tensors.iter().any(|spec| spec.role.stack == StackKind::Encoder);
            Some(if has_encoder { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" })
        }
    }
}

/// A card, so that the folder says what it is.
pub(super) fn card(base: &str, tuned: &str, summary: &str) -> SideFile {
    let text = format!(
        "---\nlibrary_name: peft\ntags:\n- lora\n---\n\n# LoRA adapter of {tuned}\n\nWhat {tuned} differs from {base} by, \
         extracted by `luthier extract-adapter`. {summary}\n\nWith peft: `PeftModel.from_pretrained(base, folder)`; with \
         luthier: `luthier fuse-adapter {base} folder out`.\n"
    );
    SideFile { name: "README.md".to_string(), bytes: text.into_bytes() }
}
