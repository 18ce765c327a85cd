"""Systems whose sides never fuse, and image classifiers."""

from __future__ import annotations

from diptych.recipes.published.fact import Published, Weights

JIT = "a TorchScript archive, which holds code: save its state_dict as .pt first, or take Hugging Face's .safetensors"
OPENAI = "https://openaipublic.azureedge.net/clip/models"
B32, RN50 = (
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
)

TOWERS = {
    "vit": Published(
        title="An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021)",
        code="github.com/google-research/vision_transformer (JAX); equality is checked against timm",
        model=("vit", "ViT"),
        parameters={"ViT-B/16 with 1,000 classes": 86_567_656},
        results={},
        weights=(
            Weights("model.safetensors", "ViT-B/16, ImageNet", "https://huggingface.co/google/vit-base-patch16-224"),
        ),
    ),
    "crossvit": Published(
        title="CrossViT: Cross-Attention Multi-Scale Vision Transformer (Chen, Fan and Panda, ICCV 2021)",
        code="github.com/IBM/CrossViT, commit 3f7ab77, Apache-2.0",
        model=("crossvit", "CrossViT"),
        parameters={"CrossViT-9": 8_553_296},
        results={"ImageNet top-1, CrossViT-9 / -15 / -18": "73.9 / 81.5 / 82.5 (paper)"},
        pixels=(240, 240),
    ),
    "mae": Published(
        title="Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022)",
        code="github.com/facebookresearch/mae, commit efb2a80, CC-BY-NC 4.0",
        model=("mae", "MAE"),
        parameters={},
        results={},
        weights=(
            Weights("mae_pretrain_vit_base.pth", "the encoder alone", "https://dl.fbaipublicfiles.com/mae/pretrain/"),
        ),
    ),
    "clip": Published(
        title="Learning Transferable Visual Models From Natural Language Supervision (Radford et al., ICML 2021)",
        code="github.com/openai/CLIP, commit d05afc4, MIT",
        model=("clip", "CLIP"),
        parameters={"ViT-B/32": 151_277_313, "RN50": 102_007_137},
        results={},
        weights=(
            Weights("ViT-B-32.pt", "ViT-B/32", f"{OPENAI}/{B32}/ViT-B-32.pt", B32, JIT),
            Weights("RN50.pt", "RN50", f"{OPENAI}/{RN50}/RN50.pt", RN50, JIT),
        ),
    ),
    "vsepp": Published(
        title="VSE++: Improving Visual-Semantic Embeddings with Hard Negatives (Faghri et al., BMVC 2018)",
        code="github.com/fartashf/vsepp, commit abe382f, Apache-2.0",
        model=("vsepp", "VSEpp"),
        parameters={},
        results={
            "COCO 1k, fine-tuned ResNet, image to text / text to image R@1": "64.6 / 52.0 (paper; not verified here)",
            "Flickr30k, the same": "52.9 / 39.6 (paper, as leaderboards list it)",
        },
        regions=1,
    ),
    "scan": Published(
        title="Stacked Cross Attention for Image-Text Matching (Lee et al., ECCV 2018)",
        code="github.com/kuanghuei/SCAN, commit 8063557, Apache-2.0",
        model=("scan", "SCAN"),
        parameters={},
        results={
            "Flickr30k, two models, image to text / text to image R@1": "67.4 / 48.6 (paper; not verified here)",
            "COCO 1k, two models": "72.7 / 58.8 (paper; not verified here)",
        },
        regions=36,
    ),
}
