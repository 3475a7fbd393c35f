"""What detr_fast is measured against, written for this project from the published behaviour."""
