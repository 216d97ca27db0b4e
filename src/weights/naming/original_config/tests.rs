use super::*;

fn parse(json: &str) -> Result<OriginalConfig> {
    OriginalConfig::read(&serde_json::from_str(json).unwrap())
}

#[test]
fn the_originals_configuration_is_read() {
    // As diffusers' ConfigMixin writes it for the original's class.
    let config = parse(
        r#"{"_class_name": "WanModel", "_diffusers_version": "0.33.0", "dim": 5120, "eps": 1e-06,
            "ffn_dim": 13824, "freq_dim": 256, "in_dim": 36, "model_type": "i2v", "num_heads": 40,
            "num_layers": 40, "out_dim": 16, "text_len": 512}"#,
    )
    .unwrap();
    let expected = OriginalConfig {
        class_name: Some("WanModel".into()),
        model_type: Some("i2v".into()),
        dim: Some(5120),
        ffn_dim: Some(13824),
        freq_dim: Some(256),
        in_dim: Some(36),
        out_dim: Some(16),
        num_heads: Some(40),
        num_layers: Some(40),
        eps: Some(1e-6),
        text_len: Some(512),
        ..OriginalConfig::default()
    };
    assert_eq!(config, expected);
    let expert = config.expert().unwrap();
    assert_eq!(
        (expert.num_attention_heads, expert.attention_head_dim),
        (40, 128)
    );
    assert_eq!((expert.in_channels, expert.out_channels), (36, 16));
    // What the original leaves out.
    assert_eq!((expert.text_dim, expert.patch_size), (4096, [1, 2, 2]));
    assert!(expert.cross_attn_norm && expert.qk_norm.is_some());
}

#[test]
fn an_incomplete_configuration_names_the_field() {
    let full =
        r#"{"dim": 24, "num_heads": 2, "in_dim": 1, "out_dim": 1, "ffn_dim": 1, "num_layers": 1}"#;
    assert!(parse(full).unwrap().expert().is_ok());
    for field in [
        "dim",
        "num_heads",
        "in_dim",
        "out_dim",
        "ffn_dim",
        "num_layers",
    ] {
        let json = full.replace(&format!("\"{field}\""), "\"other\"");
        let error = parse(&json).unwrap().expert().unwrap_err().to_string();
        assert!(error.contains(&format!("has no {field}")), "{error}");
    }
    for heads in ["0", "-2", "5"] {
        let json = full.replace("\"num_heads\": 2", &format!("\"num_heads\": {heads}"));
        let error = parse(&json).unwrap().expert().unwrap_err().to_string();
        assert!(error.contains(&format!("num_heads is {heads}")), "{error}");
    }
}

#[test]
fn mlx_videos_configuration_is_read() {
    let config = parse(
        r#"{"model_type": "i2v", "model_version": "2.2", "patch_size": [1, 2, 2], "in_dim": 36,
            "window_size": [-1, -1], "qk_norm": true, "cross_attn_norm": true, "vae_z_dim": 16,
            "dual_model": true, "boundary": 0.9, "sample_shift": 5.0, "sample_steps": 40,
            "sample_guide_scale": [3.5, 4.0], "sample_fps": 16, "frame_num": 81,
            "sample_neg_prompt": "静态", "max_area": 901120, "t5_vocab_size": 256384,
            "quantization": {"group_size": 64, "bits": 4}}"#,
    )
    .unwrap();
    let quantization = Quantization {
        bits: 4,
        group_size: 64,
    };
    assert_eq!(config.quantization, Some(quantization));
    assert_eq!(config.sample_guide_scale.unwrap().low_high(), (3.5, 4.0));
    assert_eq!(
        (config.boundary, config.sample_fps),
        (Some(0.9), Some(16.0))
    );
    assert_eq!(
        (config.max_area, config.patch_size),
        (Some(901_120), Some([1, 2, 2]))
    );
    let one = parse(r#"{"sample_guide_scale": 5.0}"#).unwrap();
    assert_eq!(one.sample_guide_scale.unwrap().low_high(), (5.0, 5.0));
}

#[test]
fn other_configurations_are_refused() {
    for (json, part) in [
        (
            r#"{"_class_name": "WanTransformer3DModel"}"#,
            "WanTransformer3DModel",
        ),
        (r#"{"qk_norm": false}"#, "qk_norm is false"),
        (r#"{"dim": "5120"}"#, "not a configuration"),
        (r#"{"dim": 3000000000}"#, "not a configuration"),
        ("[]", "not a configuration"),
        ("null", "not a configuration"),
    ] {
        let error = format!("{:#}", parse(json).unwrap_err());
        assert!(error.contains(part), "{error}");
    }
}
