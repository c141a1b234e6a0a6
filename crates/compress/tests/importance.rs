//! Moments and the order of layers: equal for any number of threads, and equal to what pruning does.

mod support;

use hybra_checkpoint::{Checkpoint, SafetensorsOptions};
use hybra_compress::depth::{cosine_order, iterative_order, kept_layers};
use hybra_compress::prune::Teacher;
use hybra_compress::scores::Scores;
use hybra_compress::select::{Channels, select};
use hybra_compress::store::Importance;
use hybra_compress::{Floors, Moments, Target};
use hybra_model::NemotronH;
use hybra_model::layer::LayerKind;
use support::{config, cpu, documents, logits, parameters, relative_error, write};

#[test]
fn moments_do_not_depend_on_threads_and_read_back() {
    let (config, dir) = (config(), tempfile::tempdir().unwrap());
    let teacher = write(&dir.path().join("t"), &config, &parameters(&config, 1));
    let model = NemotronH::open(&teacher).unwrap();
    let documents = documents(&config, 12);
    let collect = |threads, gram| {
        Moments::collect(&cpu(threads), &model, &documents, gram, &mut |_| {}).unwrap()
    };
    let moments = collect(1, true);
    assert_eq!(moments, collect(2, true));
    assert_eq!(moments.tokens, documents.iter().map(|d| d.len() as u64).sum::<u64>());
    // The diagonal of a Gram matrix is the second moment.
    for layer in &moments.layers {
        for (i, square) in layer.mixed.square.iter().enumerate() {
            let diagonal = layer.mixed.gram[i * (layer.mixed.square.len() + 1)];
            assert!((diagonal - square).abs() <= 1e-4 * square.abs() + 1e-12);
        }
    }
    for moments in [moments, collect(2, false)] {
        let made = Importance::new("hash".into(), "data".into(), "none", (vec![], moments));
        let path = dir.path().join("imp");
        made.write(&path, true).unwrap();
        assert_eq!(Importance::read(&path, &config, "hash").unwrap(), made);
        let other = Importance::read(&path, &config, "other").unwrap_err().to_string();
        assert!(other.contains("hash") && other.contains("other"), "{other}");
    }
    let missing = Importance::read(&teacher, &config, "hash").unwrap_err().to_string();
    assert!(missing.contains("importance.json"), "{missing}");
    let empty = Moments::collect(&cpu(1), &model, &[vec![]], false, &mut |_| {}).unwrap_err();
    assert!(empty.to_string().contains("document 0"));
    let foreign = vec![vec![1, config.vocab_size as u32]];
    let foreign = Moments::collect(&cpu(1), &model, &foreign, false, &mut |_| {}).unwrap_err();
    assert!(foreign.to_string().contains("vocabulary"));
}

#[test]
fn an_error_of_the_order_is_that_of_the_pruned_model() {
    let (config, dir) = (config(), tempfile::tempdir().unwrap());
    let teacher = write(&dir.path().join("t"), &config, &parameters(&config, 2));
    let model = NemotronH::open(&teacher).unwrap();
    let documents = documents(&config, 5);
    let floors = Floors::default();
    let order = iterative_order(&cpu(2), &model, &documents, 3, floors, &mut |_| {}).unwrap();
    assert_eq!(order.len(), config.layers.len() - 3);
    let checkpoint = Checkpoint::open(&teacher).unwrap();
    let opened = Teacher::new(&checkpoint).unwrap();
    let whole = logits(&teacher, &documents);
    let full = Target::full(&config);
    let removed: Vec<usize> = order.iter().map(|removal| removal.layer).collect();
    let scores = Scores::random(&config, 0);
    let error_without = |gone: &[usize]| {
        let mut target = full.clone();
        target.layers.retain(|layer| !gone.contains(layer));
        let plan = select(&config, &target, &scores, Channels::PerHead).unwrap();
        let text = target.config(&config).unwrap().to_json();
        let options = SafetensorsOptions { overwrite: true, ..SafetensorsOptions::default() };
        let (out, files) = (dir.path().join("s"), [("config.json", text.as_bytes())]);
        opened.prune(&plan, None, &out, &files, &options, &mut |_, _| {}).unwrap();
        relative_error(&logits(&out, &documents), &whole).powi(2)
    };
    for (round, removal) in order.iter().enumerate() {
        let mut all = removal.candidates.clone();
        all.push((removal.layer, removal.error));
        for (layer, error) in all {
            assert!(error >= removal.error);
            let gone = [&removed[..round], &[layer]].concat();
            let direct = error_without(&gone);
            assert!((error - direct).abs() < 1e-3 * direct, "round {round}, layer {layer}");
        }
    }
}

#[test]
fn floors_hold_and_layers_are_kept_by_kind() {
    let (config, dir) = (config(), tempfile::tempdir().unwrap());
    let teacher = write(&dir.path().join("t"), &config, &parameters(&config, 3));
    let model = NemotronH::open(&teacher).unwrap();
    let documents = documents(&config, 3);
    let moments = Moments::collect(&cpu(2), &model, &documents, false, &mut |_| {}).unwrap();
    let mamba = config.count(LayerKind::Mamba2);
    let floors = Floors { mamba, attention: 1, mlp: 1 };
    let order: Vec<usize> =
        cosine_order(&config, &moments, floors).iter().map(|removal| removal.layer).collect();
    assert!(order.iter().all(|&layer| config.layers[layer].kind() != LayerKind::Mamba2));
    let attention = config.count(LayerKind::Attention);
    assert_eq!(order.len(), config.count(LayerKind::Mlp) - 1 + attention - 1);
    let all = config.layers.len();
    let kept = kept_layers(&config, &order, all - 1, Some(attention)).unwrap();
    let count = kept.iter().filter(|&&l| config.layers[l].kind() == LayerKind::Attention).count();
    assert_eq!((kept.len(), count), (all - 1, attention));
    assert_eq!(kept_layers(&config, &order, all, None).unwrap().len(), all);
    for (order, what) in [([0, 99], "below"), ([1, 1], "twice")] {
        let error = kept_layers(&config, &order, all - 1, None).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    for (num_layers, attention) in [(0, None), (all + 1, None), (1, None), (all, Some(99))] {
        let error = kept_layers(&config, &order, num_layers, attention).unwrap_err().to_string();
        assert!(error.contains("cannot keep"), "{error}");
    }
}
