"""Systems whose text and image meet."""

from __future__ import annotations

from diptych.recipes.published.fact import Published, Weights

VILT = "https://github.com/dandelin/ViLT#download-pretrained-weights"
ALBEF = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/"
VILBERT = "https://dl.fbaipublicfiles.com/vilbert-multi-task/"

FUSERS = {
    "vilbert": Published(
        title="ViLBERT: Pretraining Task-Agnostic Visiolinguistic Representations (Lu et al., NeurIPS 2019); 12-in-1 (CVPR 2020)",
        code="github.com/facebookresearch/vilbert-multi-task, commit f22b84a, MIT",
        model=("vilbert", "ViLBERT"),
        parameters={"12-in-1, all heads": 268_028_859},
        results={
            "VQA v2 test-dev / test-std": "70.55 / 70.92 (ViLBERT paper, as leaderboards list it)",
            "Flickr30k, text to image R@1/5/10": "58.2 / 84.9 / 91.5 (ViLBERT paper; R@1 as leaderboards list it, the others not verified here)",
        },
        regions=36,
        whole=True,
        weights=(
            Weights("pretrained_model.bin", "pre-trained on Conceptual Captions", VILBERT),
            Weights("multi_task_model.bin", "12-in-1", VILBERT),
        ),
    ),
    "visualbert": Published(
        title="VisualBERT (Li et al., 2019), the single-stream form that UNITER (Chen et al., ECCV 2020) shares",
        code="checked against transformers' VisualBertModel",
        model=("visualbert", "VisualBERT"),
        parameters={},
        results={},
        regions=36,
    ),
    "vilt": Published(
        title="ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision (Kim et al., ICML 2021)",
        code="github.com/dandelin/ViLT, commit 762fd39, Apache-2.0",
        model=("vilt", "ViLT"),
        parameters={
            "pre-training (masked words, matching)": 135_660_092,
            "VQA, 3,129 answers": 117_588_537,
            "NLVR2": 113_962_754,
            "retrieval": 111_597_315,
        },
        results={
            "VQA v2 test-dev": "71.32 (EVAL.md of the official code)",
            "NLVR2 dev / test-P": "75.65 / 76.52 (EVAL.md)",
            "COCO fine-tuned, text to image R@1/5/10": "42.99 / 72.84 / 83.07 (EVAL.md)",
            "COCO fine-tuned, image to text R@1/5/10": "61.62 / 86.32 / 92.70 (EVAL.md)",
        },
        pixels=(384, 384),
        weights=(
            Weights("vilt_200k_mlm_itm.ckpt", "pre-trained", VILT),
            Weights("vilt_vqa.ckpt", "VQA v2", VILT),
            Weights("vilt_nlvr2.ckpt", "NLVR2", VILT),
            Weights("vilt_irtr_coco.ckpt", "retrieval, COCO", VILT),
            Weights("vilt_irtr_f30k.ckpt", "retrieval, Flickr30k", VILT),
        ),
    ),
    "albef": Published(
        title="Align before Fuse: Vision and Language Representation Learning with Momentum Distillation (Li et al., NeurIPS 2021)",
        code="github.com/salesforce/ALBEF, commit b9727e4, BSD-3-Clause",
        model=("albef", "ALBEF"),
        parameters={
            "pre-training, trained (with the momentum model 419,873,911)": 209_937_725,
            "VQA at 224 pixels, trained": 290_044_218,
            "NLVR2 at 224 pixels, trained": 259_089_410,
        },
        results={
            "VQA v2 test-dev / test-std, 14M": "75.84 / 76.04 (paper; not verified here)",
            "NLVR2 dev / test-P, 14M": "82.55 / 83.14 (paper; not verified here)",
            "SNLI-VE val / test, 14M": "80.80 / 80.91 (paper; not verified here)",
            "Flickr30k fine-tuned, image to text / text to image R@1, 14M": "95.9 / 85.6 (paper; not verified here)",
        },
        pixels=(256, 256),
        weights=(
            Weights("ALBEF.pth", "pre-trained, 14M", ALBEF),
            Weights("vqa.pth", "VQA v2", ALBEF),
            Weights("mscoco.pth", "retrieval, COCO", ALBEF),
            Weights("refcoco.pth", "RefCOCO+, a retrieval model", ALBEF),
            Weights("pretrain_model_nlvr.pth", "text assignment for NLVR2", ALBEF),
        ),
    ),
    "vlmo": Published(
        title="VLMo: Unified Vision-Language Pre-Training with Mixture-of-Modality-Experts (Bao et al., NeurIPS 2022)",
        code="github.com/microsoft/unilm/tree/master/vlmo, commit 768a3c8, MIT",
        model=("vlmo", "VLMo"),
        parameters={"base, pre-training on pairs": 202_414_750, "base, VQA at 224 pixels": 181_983_897},
        results={
            "VQA v2 test-dev, base / base plus / large": "76.6 / 78.5 / 79.9 (README of the official code)",
            "NLVR2 test-P": "83.3 / 85.1 / 86.9 (README)",
            "COCO fine-tuned, image to text / text to image R@1, base": "74.8 / 57.2 (README)",
        },
    ),
}
