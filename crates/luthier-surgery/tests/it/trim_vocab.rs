//! Vocabularies cut to what texts need: which rows stay, that nothing else changes, what is refused.

use std::path::{Path, PathBuf};

use luthier_checkpoint::gguf::GgufValue;
use luthier_checkpoint::{Checkpoint, Dtype, Gguf, Lineage, TensorSource, json};
use luthier_surgery::trim_vocab::{Also, Options, Report, Wish, plan, run};
use luthier_surgery::{Input, convert, quantize};
use luthier_text::Tokenizer;
use luthier_text::train_bpe::{BpeTraining, train_bpe};
use serde_json::{Map, Value, json};

use crate::models::{config, names, open, write};

const TEXT: &str = "The lute was old. The old luthier tuned the lute, and the lute sang.\n\
    In 1682 he mended 12 lutes; it's said that they'll sing still.\n";
const OTHER: &str = "Das alte Lied, die alte Laute: Über Öfen, naïve Cafés.\n";
/// Tokens of the tokenizer, and rows of the models: some have no token.
const N_TOKENS: usize = 330;
const N_ROWS: usize = 337;

/// A folder with weights, tokenizer, texts and generation settings.
fn folder(home: &Path, config: &Map<String, Value>, dtype: Dtype) -> PathBuf {
    let folder = write(&home.join("parent"), config, dtype, 3);
    let training = BpeTraining { min_frequency: 1, ..BpeTraining::gemma_like(N_TOKENS) };
    let files = train_bpe(&[TEXT, OTHER], &training).unwrap();
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    assert_eq!(tokenizer.vocab_size(), N_TOKENS);
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let generation =
        json!({"eos_token_id": [1, 325], "suppress_tokens": [0, 320, 329], "bad_words_ids": [[1], [329, 1]]});
    std::fs::write(folder.join("generation_config.json"), generation.to_string()).unwrap();
    std::fs::write(home.join("text.txt"), TEXT).unwrap();
    std::fs::write(home.join("other.txt"), OTHER).unwrap();
    folder
}

/// The config of that golden model, for `N_ROWS` rows.
fn golden(name: &str) -> Map<String, Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name).join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    config.insert("vocab_size".to_string(), json!(N_ROWS));
    config
}

fn options(home: &Path, wish: Wish) -> Options {
    Options {
        corpus: vec![home.join("text.txt")],
        wish,
        also: Vec::new(),
        multiple_of: 1,
        held: Vec::new(),
        force: false,
    }
}

fn tokenizer(checkpoint: &Checkpoint) -> Tokenizer {
    let files = checkpoint.side_files.iter().map(|file| (file.name.clone(), file.bytes.clone()));
    Tokenizer::from_files(&files.collect()).unwrap()
}

/// Every row of the output is the input's row of the same token, every other tensor is the input's, and the proof holds.
fn check(parent: &Input, out: &Path, report: &Report) {
    let child = luthier_arch::open(out).unwrap();
    let (old, new) = (tokenizer(&parent.checkpoint), tokenizer(&child));
    let layout = luthier_arch::layout(&child.config).unwrap();
    let n_rows = report.after.vocab_size;
    assert_eq!(report.after.parameter_size_full, layout.parameters());
    for info in child.tensors.infos() {
        let (before, after) =
            (parent.checkpoint.tensors.read(&info.name).unwrap(), child.tensors.read(&info.name).unwrap());
        if info.shape[0] != n_rows {
            assert!(before[..] == after[..], "{}", info.name);
            continue;
        }
        let row = after.len() / n_rows;
        for id in 0..new.vocab_size() as u32 {
            let token = new.token(id).unwrap();
            let was = old.id(&token).unwrap() as usize;
            assert!(
                after[id as usize * row..][..row] == before[was * row..][..row],
                "{} {token:?}",
                info.name
            );
        }
    }
    assert!(
        report.proof.compared_tokens > 0 && report.proof.compared_logits + report.proof.compared_states > 0
    );
    assert!(report.proof.max_abs_difference < 1e-6, "{:?}", report.proof);
}

#[test]
fn rows_of_every_architecture_are_cut_and_logits_stay() {
    let mut configs: Vec<Map<String, Value>> =
        ["gemma2", "llama", "qwen2", "qwen3", "mistral"].map(|name| config(name, 24, N_ROWS)).to_vec();
    configs.push(Map::from_iter(
        configs[1].clone().into_iter().chain([("tie_word_embeddings".to_string(), json!(true))]),
    ));
    configs.extend(["t5", "t5-v1_1", "mt5"].map(golden));
    for config in configs {
        let home = tempfile::tempdir().unwrap();
        let parent = open(&folder(home.path(), &config, Dtype::BF16));
        let out = home.path().join("out");
        let report = run(&parent, &out, &options(home.path(), Wish::Keep(290))).unwrap();
        let model_type = &config["model_type"];
        assert_eq!(
            (report.after.vocab_size, report.padding_rows, report.kept_padding_rows),
            (290, 7, 0),
            "{model_type}"
        );
        check(&parent, &out, &report);
        let child = open(&out).checkpoint;
        assert_eq!(child.config["vocab_size"], 290);
        let (old, new) = (tokenizer(&parent.checkpoint), tokenizer(&child));
        let generation: Value =
            serde_json::from_slice(child.side_file("generation_config.json").unwrap()).unwrap();
        let moved = new.id(&old.token(325).unwrap()).unwrap();
        assert_eq!(generation["eos_token_id"], json!([1, moved]));
        assert_eq!(generation["bad_words_ids"][0], json!([1]));
        let card = String::from_utf8(child.side_file("README.md").unwrap().to_vec()).unwrap();
        assert!(card.starts_with("a card\n") && card.contains("| vocab_size | 337 | 290 |"), "{card}");
        let lineage = Lineage::read(&out).unwrap().unwrap();
        assert_eq!(lineage.verb, "trim-vocab");
        assert_eq!(lineage.measurements["proof"]["lines"], 2);
    }
}

#[test]
fn an_encoder_without_a_head_is_compared_by_its_states() {
    let home = tempfile::tempdir().unwrap();
    let mut config = golden("bert-plain");
    config.insert("max_position_embeddings".to_string(), json!(200));
    let parent = open(&folder(home.path(), &config, Dtype::F32));
    let out = home.path().join("out");
    let report = run(&parent, &out, &options(home.path(), Wish::Keep(290))).unwrap();
    let (proof, child) = (&report.proof, open(&out).checkpoint);
    assert_eq!((proof.compared_logits, proof.max_abs_difference), (0, 0.0));
    assert!(proof.compared_tokens > 0 && proof.compared_states >= proof.compared_tokens);
    assert_eq!(child.tensors.infos().len(), parent.checkpoint.tensors.infos().len());
    check(&parent, &out, &report);
}

#[test]
fn an_encoder_decoder_of_ours_is_cut_in_both_stacks() {
    for model_type in ["gemma2", "llama"] {
        let home = tempfile::tempdir().unwrap();
        let parent = open(&folder(home.path(), &config(model_type, 20, N_ROWS), Dtype::F32));
        let adapted = home.path().join("adapted");
        let adapt = luthier_surgery::adapt::Options { dtype: None, seed: 1, force: false };
        luthier_surgery::adapt::run(&parent, &parent, &adapted, &adapt).unwrap();
        let adapted = open(&adapted);
        let out = home.path().join("out");
        let report = run(&adapted, &out, &options(home.path(), Wish::MinCount(1))).unwrap();
        check(&adapted, &out, &report);
        let child = open(&out).checkpoint;
        assert_eq!(child.config["encoder"]["vocab_size"], report.after.vocab_size);
        assert_eq!(report.corpora[0].coverage, 1.0);
        assert_eq!(report.proof.unchanged_line_share, 1.0);
    }
}

#[test]
fn all_rows_kept_is_the_same_model() {
    let home = tempfile::tempdir().unwrap();
    let parent = folder(home.path(), &config("llama", 24, N_ROWS), Dtype::F16);
    let (out, before) = (home.path().join("out"), names(&parent));
    let report = run(&open(&parent), &out, &options(home.path(), Wish::Keep(N_ROWS))).unwrap();
    assert_eq!((report.kept_padding_rows, report.after.compression_rate_full), (7, 100.0));
    assert!(report.proof.bitwise_equal);
    for name in before {
        assert!(
            std::fs::read(parent.join(&name)).unwrap() == std::fs::read(out.join(&name)).unwrap(),
            "{name}"
        );
    }
    let file = home.path().join("parent.gguf");
    convert::run(&open(&parent), &file, &convert::Options { dtype: None, force: false }).unwrap();
    run(&open(&file), &home.path().join("out.gguf"), &options(home.path(), Wish::Keep(N_ROWS))).unwrap();
    let (a, b) = (Gguf::open(&file).unwrap(), Gguf::open(&home.path().join("out.gguf")).unwrap());
    assert_eq!(a.infos(), b.infos());
    for (key, value) in a.metadata.iter().filter(|(key, _)| key != luthier_checkpoint::lineage::LINEAGE_KEY) {
        assert_eq!(Some(value), b.get(key), "{key}");
    }
    assert!(a.infos().iter().all(|info| a.read(&info.name).unwrap()[..] == b.read(&info.name).unwrap()[..]));
}

#[test]
fn quantised_files_are_cut_row_by_row_and_keep_their_metadata() {
    let home = tempfile::tempdir().unwrap();
    let mut config = config("llama", 64, N_ROWS);
    config.insert("intermediate_size".to_string(), json!(32));
    config.insert("head_dim".to_string(), json!(16));
    let parent = folder(home.path(), &config, Dtype::F32);
    let file = home.path().join("parent.gguf");
    let target = quantize::Target::parse("Q4_0", false).unwrap();
    let rounding = quantize::Options { target, imatrix: None, requantize: false, force: false };
    quantize::run(&open(&parent), &file, &rounding).unwrap();
    let (parent, out) = (open(&file), home.path().join("out.gguf"));
    let report = run(&parent, &out, &options(home.path(), Wish::Keep(300))).unwrap();
    check(&parent, &out, &report);
    let (old, new) = (Gguf::open(&file).unwrap(), Gguf::open(&out).unwrap());
    assert_eq!(new.get("tokenizer.ggml.pre"), old.get("tokenizer.ggml.pre"));
    assert_eq!(new.get("general.name"), old.get("general.name"));
    assert_eq!(new.get("llama.vocab_size"), Some(&GgufValue::U32(300)));
    assert_eq!(new.get("tokenizer.ggml.tokens").unwrap().as_strings().unwrap().len(), 300);
    assert!(
        old.infos()
            .iter()
            .zip(new.infos())
            .all(|(old, new)| (&old.name, old.dtype) == (&new.name, new.dtype))
    );
    // A folder cannot hold the blocks: the same values in F32.
    let widened = home.path().join("widened");
    run(&parent, &widened, &options(home.path(), Wish::Keep(300))).unwrap();
    let (a, b) = (open(&out).checkpoint, open(&widened).checkpoint);
    let difference = luthier_surgery::diff::run(&a, &b).unwrap();
    assert!(
        difference.changed.is_empty() && difference.only_in_a.is_empty() && difference.only_in_b.is_empty()
    );
    // And from a folder to a file.
    let from_folder = home.path().join("from_folder.gguf");
    run(&b_input(b), &from_folder, &options(home.path(), Wish::Keep(280))).unwrap();
    assert_eq!(open(&from_folder).checkpoint.config["vocab_size"], 280);
}

fn b_input(checkpoint: Checkpoint) -> Input {
    Input::new("widened", checkpoint)
}

#[test]
fn wishes_quotas_and_multiples_choose_as_they_say() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&folder(home.path(), &config("llama", 24, N_ROWS), Dtype::F32));
    let planned = |options: &Options| plan(&parent, &home.path().join("out"), options).unwrap();
    let rows = |options: &Options| planned(options).tensors[0].shape[0];
    let all = rows(&options(home.path(), Wish::MinCount(1)));
    let often = rows(&options(home.path(), Wish::MinCount(3)));
    assert!(often < all && all < N_TOKENS, "{often} {all}");
    let half = rows(&options(home.path(), Wish::Coverage(0.5)));
    assert!(half < all && rows(&options(home.path(), Wish::Coverage(1.0))) <= all);
    let with = |also: Vec<Also>, multiple_of: usize, wish: Wish| Options {
        also,
        multiple_of,
        ..options(home.path(), wish)
    };
    let german = |tokens| Also { name: "de".to_string(), file: home.path().join("other.txt"), tokens };
    assert!(rows(&with(vec![german(1000)], 1, Wish::MinCount(1))) > all);
    assert_eq!(rows(&with(vec![german(5)], 1, Wish::Keep(300))), 300);
    assert!(rows(&with(Vec::new(), 16, Wish::MinCount(1))).is_multiple_of(16));
    let out = home.path().join("out");
    let report = run(&parent, &out, &with(vec![german(1000)], 8, Wish::Coverage(0.9))).unwrap();
    assert_eq!(report.corpora[1].name, "de");
    assert_eq!(report.corpora[1].coverage, 1.0);
    assert!(report.corpora[0].coverage >= 0.9 && report.after.vocab_size.is_multiple_of(8));
    assert_eq!(report.kept.values().sum::<usize>(), report.after.vocab_size);
    check(&parent, &out, &report);
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_left() {
    let home = tempfile::tempdir().unwrap();
    let place = folder(home.path(), &config("llama", 24, N_ROWS), Dtype::F32);
    let parent = open(&place);
    std::fs::write(home.path().join("empty.txt"), "\n \n").unwrap();
    let before = names(home.path());
    let refused = |parent: &Input, options: &Options| {
        let out = home.path().join("out");
        let refused = run(parent, &out, options).unwrap_err().to_string();
        assert_eq!(names(home.path()), before, "{refused}");
        refused
    };
    let keep = |n| options(home.path(), Wish::Keep(n));
    let few = refused(&parent, &keep(100));
    assert!(few.contains("tokens must stay") && few.contains("256 bytes"), "{few}");
    let many = refused(&parent, &keep(1000));
    assert!(many.contains("the model has 337 rows"), "{many}");
    let also = Also { name: "de".to_string(), file: home.path().join("other.txt"), tokens: 1000 };
    let quota = refused(&parent, &Options { also: vec![also], ..keep(270) });
    assert!(quota.contains("--also brings them to"), "{quota}");
    let empty = refused(&parent, &Options { corpus: vec![home.path().join("empty.txt")], ..keep(300) });
    assert!(empty.contains("no text in") && empty.contains("empty.txt"), "{empty}");
    let missing = refused(&parent, &Options { corpus: vec![home.path().join("none.txt")], ..keep(300) });
    assert!(missing.contains("none.txt"), "{missing}");
    let multiple = refused(&parent, &Options { multiple_of: 1000, ..keep(300) });
    assert!(multiple.contains("--multiple-of 1000: 1000 rows"), "{multiple}");

    let mut bare = parent.clone();
    bare.checkpoint.side_files.retain(|file| !file.name.starts_with("tokenizer"));
    let none = refused(&bare, &keep(300));
    assert!(none.contains("no tokenizer"), "{none}");
    let mut narrow = parent.clone();
    narrow.checkpoint =
        open(&write(&home.path().join("parent/narrow"), &config("llama", 24, 300), Dtype::F32, 1)).checkpoint;
    narrow.checkpoint.side_files.clone_from(&parent.checkpoint.side_files);
    let narrow = refused(&narrow, &keep(300));
    assert!(narrow.contains("does not fit the model") && narrow.contains("300 rows"), "{narrow}");
    for wrong in ["", "de", "de:file", ":file:3", "de::3", "de:file:0", "de:file:x", "d e:file:3"] {
        assert!(Also::parse(wrong).unwrap_err().contains("LANG:FILE:N"), "{wrong}");
    }
    let fine = Also::parse("id:C:\\texts\\id.txt:10_000").unwrap();
    assert_eq!((fine.file.to_str().unwrap(), fine.tokens), ("C:\\texts\\id.txt", 10_000));
}

/// llama.cpp wants the tied head of this architecture in the file once more.
#[test]
fn a_head_that_a_gguf_file_repeats_is_cut_with_the_embedding() {
    let home = tempfile::tempdir().unwrap();
    let mut config = crate::experts::with_experts("qwen2_moe", 5);
    config.insert("tie_word_embeddings".to_string(), json!(true));
    config.insert("vocab_size".to_string(), json!(N_ROWS));
    let folder = open(&folder(home.path(), &config, Dtype::F32));
    let (file, out) = (home.path().join("parent.gguf"), home.path().join("out.gguf"));
    convert::run(&folder, &file, &convert::Options { dtype: None, force: false }).unwrap();
    let parent = open(&file);
    let report = run(&parent, &out, &options(home.path(), Wish::Keep(300))).unwrap();
    check(&parent, &out, &report);
    let gguf = Gguf::open(&out).unwrap();
    assert!(gguf.read("output.weight").unwrap()[..] == gguf.read("token_embd.weight").unwrap()[..]);
    assert_eq!(luthier_arch::open(&out).unwrap().config["tie_word_embeddings"], true);
}

#[test]
fn tied_weights_that_are_two_are_refused_and_second_copies_are_cut() {
    use luthier_checkpoint::TensorInfo;
    use luthier_checkpoint::memory::MemoryTensors;
    let home = tempfile::tempdir().unwrap();
    let mut config = config("llama", 24, N_ROWS);
    config.insert("tie_word_embeddings".to_string(), json!(true));
    let mut parent = open(&folder(home.path(), &config, Dtype::F32));
    let tensors = |changes: bool| {
        let source = &parent.checkpoint.tensors;
        let mut all: Vec<_> =
            source.infos().iter().map(|info| (info.clone(), source.read(&info.name).unwrap())).collect();
        let (info, bytes) =
            all.iter().find(|(info, _)| info.name == "model.embed_tokens.weight").unwrap().clone();
        let mut bytes = bytes.to_vec();
        bytes[3] ^= u8::from(changes) << 7;
        let head = TensorInfo { name: "lm_head.weight".to_string(), ..info };
        all.push((head, luthier_kernels::bytes::SharedBytes::from_vec(bytes)));
        std::sync::Arc::new(MemoryTensors::new(all).unwrap())
    };
    let (same, other) = (tensors(false), tensors(true));
    parent.checkpoint.tensors = other;
    let refused = run(&parent, &home.path().join("out"), &options(home.path(), Wish::Keep(300)))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("lm_head.weight") && refused.contains("tie_word_embeddings"), "{refused}");
    assert!(!home.path().join("out").exists());
    parent.checkpoint.tensors = same;
    let report = run(&parent, &home.path().join("out"), &options(home.path(), Wish::Keep(300))).unwrap();
    check(&parent, &home.path().join("out"), &report);
    let child = open(&home.path().join("out")).checkpoint;
    let head = child.tensors.read("lm_head.weight").unwrap();
    assert!(head[..] == child.tensors.read("model.embed_tokens.weight").unwrap()[..]);
    assert_eq!(json::to_text(&child.config).matches("300").count(), 1);
}

#[test]
fn the_kept_pieces_are_those_of_lm_vocab_trimmer_beside_those_that_always_stay() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let read = |name: &str| std::fs::read(golden.join(name)).unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut config: Map<String, Value> = serde_json::from_slice(&read("mt5/config.json")).unwrap();
    let chosen: Map<String, Value> = serde_json::from_slice(&read("trim-vocab/chosen.json")).unwrap();
    let json: Value = serde_json::from_slice(&read("trim-vocab/tokenizer.json")).unwrap();
    let pieces = json["model"]["vocab"].as_array().unwrap();
    config.insert("vocab_size".to_string(), json!(pieces.len() + 12));
    let place = write(&home.path().join("parent"), &config, Dtype::F32, 1);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::write(place.join(name), read(&format!("trim-vocab/{name}"))).unwrap();
    }
    let parent = open(&place);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let lowest =
        pieces.iter().min_by(|a, b| a[1].as_f64().unwrap().total_cmp(&b[1].as_f64().unwrap())).unwrap();
    let special = ["<pad>", "</s>", "<unk>", "▁", lowest[0].as_str().unwrap()].map(str::to_string);
    let must: std::collections::BTreeSet<String> = bytes.chain(special).collect();
    for n_chosen in [10, 70, chosen.len()] {
        let mut wanted = must.clone();
        wanted.extend(chosen.keys().take(n_chosen).cloned());
        let mut options = options(home.path(), Wish::Keep(wanted.len()));
        (options.corpus, options.force) = (vec![golden.join("trim-vocab/corpus.jsonl")], true);
        let out = home.path().join("out");
        let report = run(&parent, &out, &options).unwrap();
        check(&parent, &out, &report);
        let after = tokenizer(&open(&out).checkpoint);
        let came: std::collections::BTreeSet<String> =
            (0..wanted.len() as u32).filter_map(|id| after.token(id)).collect();
        assert_eq!(came, wanted);
    }
}
