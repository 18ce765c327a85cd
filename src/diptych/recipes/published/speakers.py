"""Systems that speak."""

from __future__ import annotations

from diptych.recipes.published.fact import Published, Weights

BLIP = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/"
BEIT3 = "https://github.com/microsoft/unilm/tree/master/beit3#pretrained-models"

SPEAKERS = {
    "blip": Published(
        title="BLIP: Bootstrapping Language-Image Pre-training (Li et al., ICML 2022)",
        code="github.com/salesforce/BLIP, commit 056a169, BSD-3-Clause",
        model=("blip", "BLIP"),
        parameters={
            "pre-training (trained: 252,441,919)": 475_892_799,
            "retrieval at 224 pixels (trained: 223,452,419)": 446_903_299,
            "VQA at 224 pixels": 360_938_300,
            "captions at 224 pixels": 223_679_804,
            "NLVR2 at 224 pixels": 259_080_194,
        },
        results={
            "VQA v2 test-dev / test-std, ViT-B CapFilt-L": "78.25 / 78.32 (paper; not verified here)",
            "COCO captions BLEU@4 / CIDEr, ViT-B CapFilt-L": "39.7 / 133.3 (paper; not verified here)",
            "COCO fine-tuned, image to text / text to image R@1, ViT-B CapFilt-L": "81.2 / 64.1 (paper; not verified here)",
        },
        weights=(
            Weights("model_base_14M.pth", "pre-trained, 14M", BLIP),
            Weights("model_base.pth", "pre-trained, 129M", BLIP),
            Weights("model_base_capfilt_large.pth", "pre-trained, 129M, CapFilt-L", BLIP),
            Weights("model_base_caption_capfilt_large.pth", "captions, CapFilt-L", BLIP),
            Weights("model_base_vqa_capfilt_large.pth", "VQA v2, CapFilt-L", BLIP),
            Weights("model_base_nlvr.pth", "NLVR2", BLIP),
            Weights("model_base_retrieval_coco.pth", "retrieval, COCO", BLIP),
            Weights("model_base_retrieval_flickr.pth", "retrieval, Flickr30k", BLIP),
        ),
    ),
    "coca": Published(
        title="CoCa: Contrastive Captioners are Image-Text Foundation Models (Yu et al., TMLR 2022)",
        code="not released; equality is checked against open_clip 3.3.0, whose models are of their own training",
        model=("coca", "CoCa"),
        parameters={"open_clip coca_ViT-B-32": 253_560_065},
        results={
            "ImageNet zero-shot / fine-tuned, 2.1 B": "86.3 / 91.0 (paper; not verified here)",
            "COCO captions CIDEr, 2.1 B": "143.6 (paper; not verified here)",
        },
        weights=(
            Weights(
                "open_clip_pytorch_model.bin",
                "coca_ViT-B-32, LAION-2B (open_clip's own training)",
                "https://huggingface.co/laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
            ),
        ),
    ),
    "beit3": Published(
        title="Image as a Foreign Language: BEiT Pretraining for All Vision and Vision-Language Tasks (Wang et al., CVPR 2023)",
        code="github.com/microsoft/unilm/tree/master/beit3, commit 768a3c8, MIT",
        model=("beit3", "BEiT3"),
        parameters={
            "base, VQA at 224 pixels": 227_569_977,
            "base, NLVR2": 225_719_810,
            "base, retrieval at 224 pixels": 222_167_041,
            "base, captions at 224 pixels": 270_211_082,
            "base, ImageNet-1k": 221_754_856,
        },
        results={
            "VQA v2 test-dev, base / base in domain": "77.65 / 78.46 (README of the official code)",
            "NLVR2 dev / test-P, base": "83.6 / 84.4 (README)",
            "COCO captions CIDEr, base": "133.6 (README)",
            "COCO fine-tuned, image to text / text to image R@1, base": "79.1 / 61.4 (README)",
            "ImageNet top-1, base": "85.4 (README)",
        },
        weights=(
            Weights("beit3_base_patch16_480_vqa.pth", "VQA v2, base", BEIT3),
            Weights("beit3_base_patch16_224_nlvr2.pth", "NLVR2, base", BEIT3),
            Weights("beit3_base_patch16_384_coco_retrieval.pth", "retrieval, COCO, base", BEIT3),
            Weights("beit3_base_patch16_480_coco_captioning.pth", "captions, COCO, base", BEIT3),
            Weights("beit3_base_patch16_224_in1k.pth", "ImageNet-1k, base", BEIT3),
        ),
    ),
}
