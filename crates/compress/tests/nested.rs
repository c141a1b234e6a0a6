//! A nested checkpoint: the whole is the teacher in another order, a size is the student pruned alike.

mod support;

use hybra_checkpoint::{Checkpoint, SafetensorsOptions};
use hybra_compress::compensate::{Compensation, Repair};
use hybra_compress::nested::{Nested, NestedError, order, prefix};
use hybra_compress::prune::Teacher;
use hybra_compress::scores::{Method, scores};
use hybra_compress::select::{Channels, select};
use hybra_compress::{Moments, PrunePlan, Target};
use hybra_model::NemotronH;
use std::collections::BTreeMap;
use std::path::Path;
use support::{config, cpu, documents, logits, parameters, relative_error, write};

fn cut(teacher: &Teacher, plan: &PrunePlan, repair: Option<&dyn Repair>, out: &Path) {
    let text = plan.student(&teacher.config).unwrap().to_json();
    let files = [("config.json", text.as_bytes())];
    let options = SafetensorsOptions::default();
    teacher.prune(plan, repair, out, &files, &options, &mut |_, _| {}).unwrap();
}

#[test]
fn sizes_of_a_nested_checkpoint_answer_as_students_pruned_alone() {
    let (config, dir) = (config(), tempfile::tempdir().unwrap());
    let path = write(&dir.path().join("teacher"), &config, &parameters(&config, 3));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let teacher = Teacher::new(&checkpoint).unwrap();
    let (documents, model) = (documents(&config, 4), NemotronH::open(&path).unwrap());
    let moments = Moments::collect(&cpu(2), &model, &documents, false, &mut |_| {}).unwrap();
    let scores = scores(Method::Energy, &teacher, Some(&moments)).unwrap();
    let fix = Compensation { moments: &moments, norms: true, ridge: None };

    let whole = order(&config, &scores);
    let nested = dir.path().join("nested");
    cut(&teacher, &whole, None, &nested);
    let error = relative_error(&logits(&nested, &documents), &logits(&path, &documents));
    assert!(error < 1e-5, "the order changes rounding alone: {error}");

    // All channels of a head, so that both ways rank heads by the same sums.
    let full = Target::full(&config);
    let shape = Target {
        layers: full.layers[1..].to_vec(),
        hidden_size: full.hidden_size / 2,
        intermediate_size: full.intermediate_size / 2,
        mamba_num_heads: full.mamba_num_heads / 2,
        num_attention_heads: full.num_attention_heads / 2,
        ..full
    };
    let plan = prefix(&whole, &config, &shape).unwrap();
    let size = teacher.size(&plan, shape.clone(), Some(&fix)).unwrap();
    assert!(!size.norms.is_empty());
    let alone = dir.path().join("alone");
    let selected = select(&config, &shape, &scores, Channels::PerHead).unwrap();
    cut(&teacher, &selected, Some(&fix), &alone);

    let opened = Checkpoint::open(&nested).unwrap();
    let opened = Teacher::new(&opened).unwrap();
    let everything = PrunePlan::everything(&opened.config);
    let slice = prefix(&everything, &opened.config, &shape).unwrap();
    let sliced = dir.path().join("sliced");
    cut(&opened, &slice, Some(&size), &sliced);
    let (a, b) = (logits(&sliced, &documents), logits(&alone, &documents));
    let error = relative_error(&a, &b);
    assert!(error < 1e-5, "the same channels with the same norms: {error}");
}

#[test]
fn the_file_reads_back_and_says_what_is_wrong() {
    let size = |hidden_size| hybra_compress::nested::Size {
        shape: Target { hidden_size, ..Target::full(&config()) },
        norms: BTreeMap::from([("norm.weight".to_owned(), vec![0.5])]),
    };
    let sizes = BTreeMap::from([("small".to_owned(), size(8)), ("tiny".to_owned(), size(4))]);
    let nested = Nested::new(sizes);
    assert_eq!(Nested::from_json(&nested.to_json()).unwrap(), nested);
    assert_eq!(nested.size("tiny").unwrap().shape.hidden_size, 4);
    let unknown = nested.size("big").unwrap_err().to_string();
    assert!(unknown.contains("small, tiny") && unknown.contains("big"), "{unknown}");
    let newer = nested.to_json().replace("nested 1", "nested 2");
    assert!(matches!(Nested::from_json(&newer), Err(NestedError::Format(_))));
    for bad in ["[]", "[-1.0]"] {
        let text = nested.to_json().replace("[\n          0.5\n        ]", bad);
        let message = Nested::from_json(&text).unwrap_err().to_string();
        assert!(message.contains("norm.weight") && message.contains("small"), "{message}");
    }
    assert!(Nested::from_json("{}").unwrap_err().to_string().contains("--nested"));
}
